"""What the collectives return, take and refuse. Their derivatives are in test_derivatives.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx import functions as MF
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, DtypeError, MismatchError, RemoteError


def test_off_the_root_is_a_token(comm: Communicator) -> None:
    root = comm.size - 1
    x = np.ones((comm.rank + 1, 2))
    for y in (MF.gather(comm, x, root), MF.reduce(comm, x[:1], root)):
        if comm.rank != root:
            assert (y.shape, y.dtype, y.requires_grad) == ((0,), np.float32, True)
            y.backward()
        else:
            F.sum(F.concat(y, axis=0) if isinstance(y, tuple) else y).backward()


@pytest.mark.parametrize('given', ['nothing', 'an array', 'another shape'])
def test_off_the_root_nothing_is_read(comm: Communicator, given: str) -> None:
    ignored = {
        'nothing': None,
        'an array': np.ones(4),
        'another shape': chainer.Variable(np.ones((5, 1), 'f2')),
    }[given]
    root = comm.size - 1
    x = chainer.Variable(np.arange(3.0)) if comm.rank == root else ignored
    y = MF.bcast(comm, x, root)
    np.testing.assert_array_equal(y.array, np.arange(3.0))
    F.sum(y).backward()
    if comm.rank == root:
        np.testing.assert_array_equal(x.grad, [comm.size] * 3)
    elif given == 'another shape':
        np.testing.assert_array_equal(x.grad, np.zeros((5, 1)))


def test_a_lazy_parameter_off_the_root(comm: Communicator) -> None:
    p = chainer.Parameter() if comm.rank else chainer.Parameter(np.ones(2, 'f'))
    F.sum(MF.bcast(comm, p)).backward()
    assert comm.rank or p.grad.tolist() == [comm.size] * 2


@pytest.mark.parametrize('kind', ['list', 'array', 'variable'])
def test_rows(comm: Communicator, kind: str) -> None:
    """A sequence, or one array whose first axis counts the ranks."""
    n = comm.size
    rows = np.arange(3.0 * n).reshape(n, 3) + comm.rank
    xs = {'list': [chainer.Variable(r) for r in rows], 'array': rows,
          'variable': chainer.Variable(rows)}[kind]  # fmt: skip
    found = (MF.reduce_scatter(comm, xs), MF.scatter(comm, xs), *MF.alltoall(comm, xs))
    expected = (comm.reduce_scatter(rows), comm.scatter(rows), *comm.alltoall(rows))
    for y, x in zip(found, expected, strict=True):
        np.testing.assert_array_equal(y.array, x)
    sum(F.sum(y) for y in found).backward()
    if kind == 'variable':
        np.testing.assert_array_equal(xs.grad, np.full((n, 3), 3.0 if comm.rank == 0 else 2.0))


def test_plain_arrays_are_of_the_graph(comm: Communicator) -> None:
    """So all ranks take part in backward, though only some have something to differentiate."""
    x = chainer.Variable(np.ones(2)) if comm.rank == 0 else np.ones(2)
    y = MF.allreduce(comm, x)
    assert y.requires_grad
    F.sum(y).backward()
    assert comm.rank or x.grad.tolist() == [comm.size] * 2


@pytest.mark.parametrize('dtype', ['bool', 'int8', 'int32', 'uint64', 'complex64'])
def test_other_dtypes_move(comm: Communicator, dtype: str) -> None:
    x = np.array([0, 1, 1]).astype(dtype)
    for y in (MF.bcast(comm, x), *MF.allgather(comm, x), *MF.alltoall(comm, [x] * comm.size)):
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.array, x)


@pytest.mark.parametrize('op', ['mean', 'sum'])
def test_sync_grad(comm: Communicator, op: str) -> None:
    x = chainer.Variable(np.array([1.0, 2.0]))
    y = MF.sync_grad(x, comm, op)
    np.testing.assert_array_equal(y.array, x.array)
    (gx,) = chainer.grad([F.sum((comm.rank + 1) * y**3)], [x], enable_double_backprop=True)
    weight = comm.size * (comm.size + 1) / 2 / (comm.size if op == 'mean' else 1)
    np.testing.assert_allclose(gx.array, weight * 3 * x.array**2, rtol=1e-15)
    F.sum(gx).backward()
    scale = 1 if op == 'mean' else comm.size
    np.testing.assert_allclose(x.grad, 6 * x.array * scale * weight_of_second(comm, op), rtol=1e-14)


def weight_of_second(comm: Communicator, op: str) -> float:
    """Two reductions: of the gradient, and of what comes back through it."""
    total = comm.size * (comm.size + 1) / 2
    return total / comm.size if op == 'mean' else total


Call = Callable[[Communicator, Any], Any]
ONE: dict[str, Call] = {
    'allreduce': MF.allreduce,
    'allgather': MF.allgather,
    'gather': MF.gather,
    'reduce': MF.reduce,
    'max': lambda comm, x: MF.allreduce(comm, x, 'max'),
    'bcast': lambda comm, x: MF.bcast(comm, x, comm.size - 1),
}
ROW: dict[str, Call] = {
    'alltoall': MF.alltoall,
    'reduce_scatter': MF.reduce_scatter,
    'scatter': lambda comm, xs: MF.scatter(comm, xs, comm.size - 1),
}


@pytest.mark.parametrize('bad', ['None', 'float', 'list', 'lazy', 'objects'])
@pytest.mark.parametrize('name', ONE)
def test_what_one_rank_cannot_send_all_refuse(comm: Communicator, name: str, bad: str) -> None:
    wrong = {'None': None, 'float': 1.0, 'list': [[1.0]], 'lazy': chainer.Parameter(),
             'objects': np.array([None])}[bad]  # fmt: skip
    error = ArgumentError if bad == 'lazy' else DtypeError
    with pytest.raises(error):
        ONE[name](comm, wrong if comm.rank == comm.size - 1 else np.ones(2))
    in_step(comm)


@pytest.mark.parametrize('bad', ['None', 'too many', '0-d', 'one is None', 'a number'])
@pytest.mark.parametrize('name', ROW)
def test_wrong_rows(comm: Communicator, name: str, bad: str) -> None:
    n = comm.size
    wrong = {'None': None, 'too many': [np.ones(2)] * (n + 1), '0-d': chainer.Variable(np.ones(())),
             'one is None': [np.ones(2)] * (n - 1) + [None], 'a number': 7}[bad]  # fmt: skip
    own = {'one is None': DtypeError, 'a number': TypeError}.get(bad, ValueError)
    there = RemoteError if bad == 'a number' else own
    with pytest.raises(own if comm.rank == n - 1 else there):
        ROW[name](comm, wrong if comm.rank == n - 1 else [np.ones(2)] * n)
    in_step(comm)


@pytest.mark.parametrize('op', ['sum', 'max', 'product', None])
@pytest.mark.parametrize('root', [-1, 'size', None])
def test_wrong_roots_and_operations(comm: Communicator, op: Any, root: Any) -> None:
    root = comm.size if root == 'size' else root
    x = np.ones(2)
    for call in (
        lambda: MF.reduce(comm, x, root, op),
        lambda: MF.gather(comm, x, root),
        lambda: MF.scatter(comm, [x] * comm.size, root),
        lambda: MF.bcast(comm, x, root),
    ):
        with pytest.raises(ArgumentError, match='not a rank'):
            call()
    if op not in ('sum', 'max'):
        with pytest.raises(ArgumentError, match='unknown operation'):
            MF.allreduce(comm, x, op)
        with pytest.raises(ArgumentError, match='sync_grad'):
            MF.sync_grad(x, comm, op)
    in_step(comm)


@pytest.mark.needs_ranks(2)
def test_ranks_that_disagree(comm: Communicator) -> None:
    x = np.ones(2 + comm.rank)
    for call in (
        lambda: MF.allreduce(comm, x),
        lambda: MF.allreduce(comm, np.ones(2), 'max' if comm.rank else 'min'),
        lambda: MF.reduce(comm, np.ones(2), comm.rank % 2, 'prod'),
        lambda: MF.reduce_scatter(comm, [x] * comm.size),
        lambda: MF.bcast(comm, x, comm.rank % 2),
    ):
        with pytest.raises(MismatchError):
            call()
        in_step(comm)


@pytest.mark.needs_ranks(2)
def test_gradients_that_disagree(comm: Communicator) -> None:
    y = MF.sync_grad(chainer.Variable(np.ones(2 + comm.rank)), comm)
    with pytest.raises(MismatchError):
        F.sum(y).backward()
    in_step(comm)


def in_step(comm: Communicator) -> None:
    """After an error all ranks go on together."""
    assert comm.allreduce(np.array(1)) == comm.size
