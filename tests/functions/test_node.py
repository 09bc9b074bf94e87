"""Who takes part in backward, and in which order."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import chainer
import chainer.functions as F
import numpy as np
import pytest

import mnx
from mnx import functions as MF
from mnx.communicators import Communicator


def deep(x: Any, layers: int) -> Any:
    for _ in range(layers):
        x = x * 1
    return x


def test_graphs_of_different_depth(comm: Communicator) -> None:
    """Chainer alone would run the bcast of the root first, as the deepest, and elsewhere last."""
    x, w = chainer.Variable(np.ones(2)), chainer.Variable(np.ones(2))
    if comm.rank == 0:
        first = MF.bcast(comm, deep(x, 9))
        second = MF.allreduce(comm, w)
        third = MF.gather(comm, deep(x, 3))
        loss = F.sum(first) + F.sum(second) + sum(F.sum(y) for y in third)
    else:
        first = MF.bcast(comm, None)
        second = MF.allreduce(comm, deep(w, 5))
        third = MF.gather(comm, x)
        loss = deep(F.sum(second), 4) + F.sum(first)
        (loss,) = MF.pseudo_connect(third, loss)
    loss.backward()
    np.testing.assert_array_equal(w.grad, [comm.size] * 2)
    np.testing.assert_array_equal(x.grad, [1 + comm.size * (comm.rank == 0)] * 2)


def test_order_holds_across_communicators(comm: Communicator) -> None:
    """Each rank is in two groups; the graphs do not tell which one was first."""
    pair = comm.split(comm.rank // 2, comm.rank)
    x = chainer.Variable(np.ones(2))
    a = MF.allreduce(pair, deep(x, comm.rank % 3))
    b = MF.allreduce(comm, deep(x, 2 - comm.rank % 3))
    losses = [F.sum(a), F.sum(b)]
    (losses[1 - comm.rank % 2] + losses[comm.rank % 2]).backward()
    np.testing.assert_array_equal(x.grad, [pair.size + comm.size] * 2)


@pytest.mark.parametrize('name', ['allreduce', 'allgather', 'bcast', 'gather'])
def test_a_rank_that_uses_nothing(comm: Communicator, name: str) -> None:
    """It takes part by pseudo_connect."""
    x = chainer.Variable(np.ones(2))
    y = getattr(MF, name)(comm, x)
    ys = y if isinstance(y, tuple) else (y,)
    w = chainer.Variable(np.array(1.0))
    loss = w * 3
    if comm.rank == 0:
        loss = sum(F.sum(y) for y in ys)
    else:
        for y in ys:
            (loss,) = MF.pseudo_connect(y, loss)
    loss.backward()
    sources = name != 'bcast' or comm.rank == 0
    np.testing.assert_array_equal(x.grad, [1 if sources else 0] * 2)
    assert comm.rank == 0 or w.grad == 3


@pytest.mark.needs_ranks(2)
def test_a_rank_that_leaves_backward_out(comm: Communicator) -> None:
    """The others are not left waiting: they hear of it at its next collective, and where."""
    y = MF.allreduce(comm, chainer.Variable(np.ones(2)))
    next_call = F.sum(y).backward if comm.rank else comm.barrier
    with pytest.raises(mnx.errors.MismatchError, match='barrier') as caught:
        next_call()
    assert str(caught.value).count(__file__) == comm.size


def test_a_model_divided_over_the_ranks(comm: Communicator) -> None:
    """Each rank owns some of the hidden units; gradients are those of the undivided model."""
    n, rank = comm.size, comm.rank
    np.random.seed(0)
    W1, W2 = np.random.randn(2 * n, 3), np.random.randn(4, 2 * n)
    x = np.random.randn(5, 3)
    mine = slice(2 * rank, 2 * rank + 2)
    part = chainer.Variable(W1[mine])
    h = F.tanh(F.linear(x, part))
    y = F.matmul(F.concat(MF.allgather(comm, h)), W2.T)
    F.sum(y**2 / n).backward()  # every rank has the whole loss: its share is the n-th part
    W = chainer.Variable(W1)
    F.sum(F.matmul(F.tanh(F.linear(x, W)), W2.T) ** 2).backward()
    np.testing.assert_allclose(part.grad, W.grad[mine], rtol=1e-12)


def test_two_passes_and_accumulation(comm: Communicator) -> None:
    x = chainer.Variable(np.array([1.0, 2.0]))
    y = MF.allreduce(comm, x**2)
    for _ in range(2):
        F.sum(y).backward()
    np.testing.assert_array_equal(x.grad, 2 * comm.size * 2 * x.array)


def test_without_backprop_nothing_is_kept(comm: Communicator) -> None:
    x = chainer.Variable(np.ones(2))
    with chainer.no_backprop_mode():
        y = MF.allreduce(comm, x, 'max')
    assert y.creator is None


def test_graphs_are_freed(comm: Communicator) -> None:
    """Without the garbage collector: nothing refers to itself, also after double backprop."""
    gc.collect()
    gc.disable()
    try:
        x = chainer.Variable(np.ones(2))
        y = MF.allreduce(comm, x**2, 'prod')
        (gx,) = chainer.grad([F.sum(y**2)], [x], enable_double_backprop=True)
        F.sum(gx).backward()
        nodes = [weakref.ref(v.creator_node) for v in (y, gx)]
        del y, gx
        assert [node() for node in nodes] == [None, None]
    finally:
        gc.enable()


def test_debug_mode(comm: Communicator) -> None:
    """Chainer checks the shapes and dtypes of all gradients."""
    x = chainer.Variable(np.ones((2, 3), 'f4'))  # as a token's, so that the sums add up
    with chainer.using_config('debug', True):
        ys = [*MF.allgather(comm, x), MF.reduce(comm, x), MF.allreduce(comm, x, 'prod')]
        chainer.grad([sum(F.sum(y) for y in ys)], [x], enable_double_backprop=True)


def test_third_derivative(comm: Communicator) -> None:
    x = chainer.Variable(np.array([1.0 + comm.rank]))
    y = F.sum(MF.allreduce(comm, x) ** 4) / comm.size
    for _ in range(3):
        (y,) = chainer.grad([F.sum(y)], [x], enable_double_backprop=True)
    total = comm.size * (comm.size + 1) / 2
    np.testing.assert_allclose(y.array, comm.size**2 * 24 * total)
