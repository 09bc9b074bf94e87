"""Whole and split values of one loss, beside one process: values and two derivatives."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.functions import replicated as R
from mnx.testing import part_of

RTOL = 1e-13


def two_derivatives(f, x):
    """Return f(x), its gradient, and the gradient of a function of that, all replicated."""
    x = chainer.Variable(x)
    y = F.sum(f(x))
    (g,) = chainer.grad([y], [x], enable_double_backprop=True)
    F.sum(g * g * g).backward()
    return y.array, g.array, x.grad


@pytest.mark.parametrize('columns', [1, 3, 7])
def test_split_and_join(comm: Communicator, columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, columns))

    def parallel(x):
        y = R.join(comm, F.tanh(R.split(comm, x)) ** 2)
        return y * F.sin(y)

    def serial(x):
        y = F.tanh(x) ** 2
        return y * F.sin(y)

    for found, expected in zip(
        two_derivatives(parallel, x), two_derivatives(serial, x), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL)


def test_spread_and_total(comm: Communicator) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3))

    def term(x, rank):
        return F.sin(x * (rank + 1))

    def parallel(x):
        return R.total(comm, term(R.spread(comm, x), comm.rank)) ** 2

    def serial(x):
        return sum(term(x, rank) for rank in range(comm.size)) ** 2

    for found, expected in zip(
        two_derivatives(parallel, x), two_derivatives(serial, x), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_parts_are_those_of_part_of(comm: Communicator, axis: int) -> None:
    x = np.arange(5 * 6 * 7.0).reshape(5, 6, 7)
    (expected,) = part_of(comm, (np.moveaxis(x, axis, 0),))
    found = R.split(comm, x, axis).array
    np.testing.assert_array_equal(found, np.moveaxis(expected, 0, axis))
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(R.join(comm, found, axis).array, x)


@pytest.mark.needs_ranks(2)
def test_parts_of_other_sizes_cannot_be_joined(comm: Communicator) -> None:
    x = np.zeros((2, 3 if comm.rank == 0 else 1))
    with pytest.raises(ArgumentError, match=r'join: the parts of .* are not as expected'):
        R.join(comm, x)


def test_what_needs_no_gradient_is_no_node(comm: Communicator) -> None:
    x = np.zeros((2, 3))
    assert R.spread(comm, x).creator is None
    assert R.split(comm, x).creator is None
