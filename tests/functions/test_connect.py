from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx import functions as MF
from mnx.functions.connect import anchored_token


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8'])
@pytest.mark.parametrize('shape', [(), (0,), (2, 3)], ids=str)
def test_delegate_gets_zeros(shape: tuple[int, ...], dtype: str) -> None:
    """Of its own shape and dtype; the gradients of the others pass through."""
    delegate = chainer.Variable(np.ones(shape, dtype))
    actual = [chainer.Variable(np.ones((2, k), d)) for k, d in enumerate(['f2', 'f4', 'f8'])]
    found = MF.pseudo_connect(delegate, *actual)
    assert isinstance(found, tuple)
    for x, y in zip(actual, found, strict=True):
        np.testing.assert_array_equal(x.array, y.array)
        y.grad = np.full_like(y.array, 7)
    chainer.backward(found)
    assert (delegate.grad.shape, delegate.grad.dtype) == (shape, dtype)
    assert not delegate.grad.any()
    for x in actual:
        np.testing.assert_array_equal(x.grad, np.full_like(x.array, 7))


def test_unused_results_still_reach_what_is_before_them() -> None:
    delegate, x, y = (chainer.Variable(np.ones(2)) for _ in range(3))
    u, _ = MF.pseudo_connect(delegate, x * 2, y * 3)
    F.sum(u).backward()
    np.testing.assert_array_equal(x.grad, [2, 2])
    np.testing.assert_array_equal(y.grad, [0, 0])
    np.testing.assert_array_equal(delegate.grad, [0, 0])


def test_second_derivative() -> None:
    delegate, x = chainer.Variable(np.ones(3)), chainer.Variable(np.array([1.0, 2.0]))
    (y,) = MF.pseudo_connect(delegate, x)
    gx, gd = chainer.grad([F.sum(y**3)], [x, delegate], enable_double_backprop=True)
    np.testing.assert_array_equal(gd.array, np.zeros(3))
    (F.sum(gx) + F.sum(gd)).backward()
    np.testing.assert_array_equal(x.grad, 6 * x.array)


def test_without_a_delegate() -> None:
    x = np.ones(2, 'f4')
    (y,) = MF.pseudo_connect(None, x)
    assert y.requires_grad
    assert MF.pseudo_connect(None) == ()


def test_an_anchor_costs_first_derivatives_nothing() -> None:
    x, y = chainer.Variable(np.ones(2)), chainer.Variable(np.ones(3, 'f4'))
    ids = chainer.Variable(np.ones(2, 'i4'))
    data = chainer.Variable(np.ones(2), requires_grad=False)
    token = anchored_token([x, y, ids, data, np.ones(2), chainer.Parameter()])
    assert (token.shape, token.dtype) == ((0,), np.float32)
    token.backward()
    assert (x.grad, y.grad) == (None, None)
    token.backward(enable_double_backprop=True)
    assert (x.grad.tolist(), y.grad.dtype, ids.grad) == ([0, 0], np.float32, None)
    assert x.grad_var.creator is not None
    assert anchored_token([ids, data]) is None
