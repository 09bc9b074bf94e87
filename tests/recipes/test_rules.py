"""Chainer's optimizers by the names of recipes, and schedules as functions of the epoch."""

from __future__ import annotations

from typing import Any

import chainer.links as L
import numpy as np
import pytest
from chainer import optimizers
from pydantic import TypeAdapter

from mnx.recipes import rules, schema


def rule(**words: Any) -> Any:
    return TypeAdapter(schema.LearningRule).validate_python(words)


def schedule(**words: Any) -> Any:
    return TypeAdapter(schema.Schedule).validate_python(words)


RULES = {
    'sgd': optimizers.SGD,
    'momentum': optimizers.MomentumSGD,
    'nesterov': optimizers.NesterovAG,
    'adam': optimizers.Adam,
    'adadelta': optimizers.AdaDelta,
    'rmsprop': optimizers.RMSprop,
    'adagrad': optimizers.AdaGrad,
}


def test_all_rules_are_here() -> None:
    assert RULES.keys() == rules.STATES.keys()


@pytest.mark.parametrize('name', RULES)
def test_a_rule_is_chainers(name: str) -> None:
    optimizer = rules.optimizer_of(rule(type=name))
    assert type(optimizer) is RULES[name]
    link = L.Linear(3, 2, nobias=True)
    optimizer.setup(link)
    link.W.grad = np.ones_like(link.W.array)
    optimizer.update()
    state = [s for s in link.W.update_rule.state.values() if np.ndim(s)]
    assert len(state) == rules.STATES[name]


@pytest.mark.parametrize('name', RULES)
def test_defaults_are_chainers(name: str) -> None:
    optimizer, expected = rules.optimizer_of(rule(type=name)), RULES[name]()
    assert optimizer.hyperparam.get_dict() == expected.hyperparam.get_dict()


def test_numbers_arrive() -> None:
    adam = rules.optimizer_of(rule(type='adam', learning_rate=3.0, beta1=0.1, beta2=0.2, epsilon=4))
    assert (adam.alpha, adam.beta1, adam.beta2, adam.eps) == (3.0, 0.1, 0.2, 4)
    momentum = rules.optimizer_of(rule(type='momentum', learning_rate=2.0, momentum=0.3))
    assert (momentum.lr, momentum.momentum) == (2.0, 0.3)
    adadelta = rules.optimizer_of(rule(type='adadelta', rho=0.4, epsilon=0.5))
    assert (adadelta.rho, adadelta.eps) == (0.4, 0.5)
    rmsprop = rules.optimizer_of(rule(type='rmsprop', learning_rate=2.0, decay=0.4, epsilon=0.5))
    assert (rmsprop.lr, rmsprop.alpha, rmsprop.eps) == (2.0, 0.4, 0.5)


def test_rates() -> None:
    adam, sgd = optimizers.Adam(0.1), optimizers.SGD(0.2)
    assert rules.rates_of(adam) == [(adam, 'alpha', 0.1)]
    assert rules.rates_of(sgd) == [(sgd, 'lr', 0.2)]
    assert rules.rates_of(optimizers.AdaDelta()) == []


def test_weight_decay_is_the_rules_own() -> None:
    link = L.Linear(2, 2, initialW=np.ones((2, 2)))
    optimizers.SGD(0.1).setup(link)
    rules.apply(rule(type='sgd', learning_rate=0.1, weight_decay=0.5), link)
    link.cleargrads()
    for param in link.params():
        param.grad = np.zeros_like(param.array)
        param.update()
    np.testing.assert_allclose(link.W.array, 1 - 0.1 * 0.5)


def test_step() -> None:
    steps = schedule(type='step', epochs=[2, 3], factor=0.5)
    epochs = (0, 1.9, 2, 2.5, 3, 9)
    assert [rules.factor(steps, e, 10) for e in epochs] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_exponential() -> None:
    halves = schedule(type='exponential', factor=0.5)
    assert [rules.factor(halves, e, 10) for e in (0, 0.9, 1, 3.5)] == [1, 1, 0.5, 0.125]


def test_polynomial() -> None:
    square = schedule(type='polynomial', power=2)
    assert [rules.factor(square, e, 4) for e in (0, 2, 4, 5)] == [1, 0.25, 0, 0]


def test_warmup() -> None:
    halves = schedule(type='exponential', factor=0.5, warmup=2)
    assert [rules.factor(halves, e, 10) for e in (0, 0.5, 1, 2, 3)] == [0, 0.25, 0.25, 0.25, 0.125]
