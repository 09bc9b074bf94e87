"""Costs and metrics, one number for each sample."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx.recipes.objective import COSTS, METRICS

Y = np.random.RandomState(0).standard_normal((9, 7))
T = np.arange(9, dtype='i') % 7


def cost(name: str) -> np.ndarray:
    return COSTS[name](chainer.Variable(Y), T).array


def test_cross_entropy_is_chainers() -> None:
    expected = float(F.softmax_cross_entropy(Y, T).array)
    assert cost('cross_entropy').mean() == pytest.approx(expected, rel=1e-12)
    assert METRICS['log_loss'](Y, T).mean() == pytest.approx(expected, rel=1e-12)


def test_binary_cross_entropy_is_summed_over_the_classes() -> None:
    p, target = 1 / (1 + np.exp(-Y)), np.eye(7)[T]
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(cost('binary_cross_entropy'), expected, rtol=1e-12)


def test_squared_error() -> None:
    expected = ((Y - np.eye(7)[T]) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(cost('squared_error'), expected, rtol=1e-12)


def test_metrics() -> None:
    best = np.argsort(-Y, axis=1)
    right = best[:, 0] == T
    np.testing.assert_array_equal(METRICS['accuracy'](Y, T), right)
    np.testing.assert_array_equal(METRICS['misclassification'](Y, T), ~right)
    in_5 = [t in row[:5] for t, row in zip(T, best, strict=True)]
    np.testing.assert_array_equal(METRICS['top_5'](Y, T), in_5)
    assert 0 < np.mean(in_5) < 1
