"""Where the gradients of maximum, minimum and product are delicate."""

from __future__ import annotations

import chainer
import numpy as np
import pytest

from mnx import functions as MF
from mnx.communicators import Communicator


@pytest.mark.parametrize('op', ['max', 'min'])
@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8'])
def test_ties_share_equally(comm: Communicator, op: str, dtype: str) -> None:
    sign = 1 if op == 'max' else -1
    # all tie in the first, all but rank 0 in the second, in the last rank 0 is alone
    x = chainer.Variable(sign * np.array([1, min(comm.rank, 1), -comm.rank], dtype))
    y = MF.allreduce(comm, x, op)
    y.grad = np.full(3, comm.rank + 1, dtype)
    y.backward()
    total = comm.size * (comm.size + 1) / 2
    others = max(comm.size - 1, 1)
    second = total / others if comm.rank or comm.size == 1 else 0
    expected = np.array([total / comm.size, second, total * (comm.rank == 0)], dtype)
    assert x.grad.dtype == dtype
    np.testing.assert_allclose(x.grad, expected, rtol=np.finfo(dtype).eps * 2)


@pytest.mark.parametrize('root', [None, 0])
def test_product_with_zeros(comm: Communicator, root: int | None) -> None:
    """Column k is zero on the first k ranks: the slope is the product of the others, exactly."""
    n, rank = comm.size, comm.rank
    X = np.array([[0.0 if r < k else r + 2 for k in range(n + 1)] for r in range(n)])
    x = chainer.Variable(X[rank])
    y = MF.allreduce(comm, x, 'prod') if root is None else MF.reduce(comm, x, root, 'prod')
    if root is None or rank == root:
        np.testing.assert_array_equal(y.array, X.prod(axis=0))
        y.grad = np.ones(n + 1)
    y.backward()
    slope = np.delete(X, rank, axis=0).prod(axis=0)
    np.testing.assert_array_equal(x.grad, slope * (n if root is None else 1))


def test_nan_has_no_share(comm: Communicator) -> None:
    x = chainer.Variable(np.array([np.nan, comm.rank]))
    y = MF.allreduce(comm, x, 'max')
    y.grad = np.ones(2)
    y.backward()
    np.testing.assert_array_equal(x.grad, [0, comm.size * (comm.rank == comm.size - 1)])


@pytest.mark.parametrize('op', ['sum', 'mean', 'max', 'prod'])
def test_integers_have_values_but_no_gradients(comm: Communicator, op: str) -> None:
    x = chainer.Variable(np.arange(3))
    y = MF.allreduce(comm, x, op)
    np.testing.assert_array_equal(y.array, comm.allreduce(np.arange(3), op))
    y.grad = np.ones_like(y.array)
    y.backward()
    assert x.grad is None
