from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx import functions as MF
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, DtypeError

two_ranks = pytest.mark.needs_ranks(2)
LONG = 40_000  # float64: more than one MPI message, and no library sends it unasked


def test_no_message_to_oneself(comm: Communicator) -> None:
    with pytest.raises(ValueError, match='cannot exchange messages with itself'):
        MF.send(np.ones(2), comm, comm.rank)
    with pytest.raises(ValueError, match='cannot exchange messages with itself'):
        MF.recv(comm, comm.rank)


def test_misuse(comm: Communicator) -> None:
    with pytest.raises(ArgumentError, match='not a rank'):
        MF.send(np.ones(2), comm, comm.size)
    with pytest.raises(ArgumentError, match='not a rank'):
        MF.recv(comm, -1)
    peer = (comm.rank + 1) % comm.size if comm.size > 1 else 1
    with pytest.raises(ArgumentError, match='at least one'):
        MF.send([], comm, peer)
    with pytest.raises(DtypeError, match='float'):
        MF.send(1.0, comm, peer)
    with pytest.raises(ArgumentError, match='no values yet'):
        MF.send(chainer.Parameter(), comm, peer)


@two_ranks
def test_a_wrong_delegate_is_told_before_anything_is_received(comm: Communicator) -> None:
    for wrong in (np.ones(1), (chainer.Variable(np.ones(1)),)):
        with pytest.raises(DtypeError, match='delegate_variable is one variable'):
            MF.recv(comm, (comm.rank + 1) % comm.size, wrong)


@two_ranks
def test_delegate_variable(comm: Communicator) -> None:
    """Empty, float32, and of the graph even if a plain array was sent."""
    if comm.rank == 0:
        delegate = MF.send(np.ones(2), comm, 1, tag=5)
        assert (delegate.shape, delegate.dtype) == ((0,), np.float32)
        assert delegate.name == 'delegate_variable'
        assert delegate.requires_grad
        delegate.backward()
    if comm.rank == 1:
        y = MF.recv(comm, 0, tag=5)
        assert y.requires_grad
        F.sum(y).backward()


@two_ranks
@pytest.mark.parametrize('force_tuple', [False, True])
@pytest.mark.parametrize('kind', ['bare', 'one in a list', 'several'])
def test_tuples_of_mixed_dtypes(comm: Communicator, kind: str, force_tuple: bool) -> None:
    """Of which only the last one is used."""
    xs = [chainer.Variable(np.full((2, k), 3, d)) for k, d in enumerate(['f2', 'f8', 'f4'], 1)]
    xs = xs if kind == 'several' else xs[:1]
    if comm.rank == 0:
        MF.send(xs[0] if kind == 'bare' else xs, comm, 1).backward()
        for x in xs[:-1]:
            np.testing.assert_array_equal(x.grad, np.zeros_like(x.array))
        np.testing.assert_array_equal(xs[-1].grad, np.full_like(xs[-1].array, 6))
    if comm.rank == 1:
        ys = MF.recv(comm, 0, force_tuple=force_tuple)
        assert isinstance(ys, tuple) == (force_tuple or kind == 'several')
        ys = ys if isinstance(ys, tuple) else (ys,)
        assert [(y.shape, y.dtype) for y in ys] == [(x.shape, x.dtype) for x in xs]
        F.sum(ys[-1] ** 2).backward()


@two_ranks
@pytest.mark.parametrize('dtype', ['f2', 'f8'])
def test_delegate_of_any_shape(comm: Communicator, dtype: str) -> None:
    """Backward goes on to it, with zeros."""
    if comm.rank == 0:
        delegate = chainer.Variable(np.ones((2, 3), dtype))
        F.sum(MF.recv(comm, 1, delegate)).backward()
        assert (delegate.grad.dtype, delegate.name) == (dtype, 'delegate_variable')
        np.testing.assert_array_equal(delegate.grad, np.zeros((2, 3)))
    if comm.rank == 1:
        MF.send(np.ones(2), comm, 0).backward()


@two_ranks
@pytest.mark.parametrize('length', [3, LONG])
def test_there_and_back(comm: Communicator, length: int) -> None:
    """The first rank's model goes through the second one: y = (3x)**2."""
    x = chainer.Variable(np.linspace(0, 1, length))
    if comm.rank == 0:
        y = MF.recv(comm, 1, MF.send(3 * x, comm, 1))
        F.sum(y).backward()
        np.testing.assert_allclose(y.array, 9 * x.array**2)
        np.testing.assert_allclose(x.grad, 18 * x.array)
    if comm.rank == 1:
        MF.send(MF.recv(comm, 0) ** 2, comm, 0).backward()


@two_ranks
@pytest.mark.parametrize('length', [3, LONG])
def test_messages_need_no_chain(comm: Communicator, length: int) -> None:
    """Gradients travel in the reverse order of the messages, whatever depends on what."""
    x = chainer.Variable(np.linspace(0, 1, length))
    if comm.rank == 0:
        deep = x * 4
        for _ in range(5):
            deep = deep * 1
        first, second, third = (MF.send(v, comm, 1) for v in (deep, x, 2 * x))
        MF.pseudo_connect(second, *MF.pseudo_connect(first, third))[0].backward()
        np.testing.assert_allclose(x.grad, 4 * 2 + 3 + 2 * 5)
    if comm.rank == 1:
        ys = [MF.recv(comm, 0) for _ in range(3)]
        loss = F.sum(5 * ys[2]) + F.sum(2 * ys[0])
        for _ in range(3):
            loss = loss * 1
        (loss + F.sum(3 * ys[1])).backward()


@two_ranks
def test_tags(comm: Communicator) -> None:
    """Messages with tags of their own are taken in another order; so are their gradients."""
    x = chainer.Variable(np.ones(2))
    if comm.rank == 0:
        delegates = [MF.send(k * x, comm, 1, tag=k) for k in (1, 2)]
        MF.pseudo_connect(*delegates)[0].backward()
        np.testing.assert_array_equal(x.grad, [10 + 2 * 20] * 2)
    if comm.rank == 1:
        two, one = MF.recv(comm, 0, tag=2), MF.recv(comm, 0, tag=1)
        np.testing.assert_array_equal(two.array, 2 * one.array)
        F.sum(10 * one + 20 * two).backward()
