"""Learning rules: an optimizer for all parameters, other rules for some layers, a schedule."""

from __future__ import annotations

from typing import Any, TypeAlias

import chainer
from chainer import optimizers
from chainer.optimizer_hooks import WeightDecay
from chainer.training import Extension

from mnx.recipes import schema

Rated: TypeAlias = 'tuple[Any, str, float]'  # an optimizer, the name of its rate, the rate

# How many arrays of a parameter's size a rule keeps beside it.
STATES = {
    'sgd': 0,
    'momentum': 1,
    'nesterov': 1,
    'adam': 2,
    'adadelta': 2,
    'rmsprop': 1,
    'adagrad': 1,
}


def optimizer_of(rule: Any) -> chainer.Optimizer:
    """Return Chainer's optimizer for a learning rule of a recipe."""
    match rule:
        case schema.SGD():
            return optimizers.SGD(rule.learning_rate)
        case schema.Momentum(type='momentum'):
            return optimizers.MomentumSGD(rule.learning_rate, rule.momentum)
        case schema.Momentum():
            return optimizers.NesterovAG(rule.learning_rate, rule.momentum)
        case schema.Adam():
            return optimizers.Adam(rule.learning_rate, rule.beta1, rule.beta2, rule.epsilon)
        case schema.Adadelta():
            return optimizers.AdaDelta(rule.rho, rule.epsilon)
        case schema.RMSprop():
            return optimizers.RMSprop(rule.learning_rate, rule.decay, rule.epsilon)
    return optimizers.AdaGrad(rule.learning_rate, rule.epsilon)


def apply(rule: Any, link: chainer.Link) -> chainer.Optimizer:
    """Let the parameters of a link learn by `rule`; return the optimizer that holds its numbers.

    The link's own optimizer must have been set up; its hooks stay.
    """
    optimizer = optimizer_of(rule)
    for param in link.params():
        param.update_rule = optimizer.create_update_rule()
        decay(rule, param)
    return optimizer


def decay(rule: Any, param: chainer.Parameter) -> None:
    """Add the rule's weight decay, if it has some."""
    if rule.weight_decay:
        param.update_rule.add_hook(WeightDecay(rule.weight_decay))


def rates_of(optimizer: Any) -> list[Rated]:
    """Return where an optimizer keeps its learning rate, and what that is; none of AdaDelta."""
    if isinstance(optimizer, optimizers.AdaDelta):
        return []
    name = 'alpha' if isinstance(optimizer, optimizers.Adam) else 'lr'
    return [(optimizer, name, getattr(optimizer, name))]


def factor(schedule: Any, epoch: float, n_epochs: int) -> float:
    """Return by what the learning rates are multiplied, `epoch` epochs after the beginning.

    With a warm-up they first grow from zero, in a straight line.
    """
    warmup = min(1.0, epoch / schedule.warmup) if schedule.warmup else 1.0
    match schedule:
        case schema.Steps():
            return warmup * float(schedule.factor ** sum(epoch >= at for at in schedule.epochs))
        case schema.Exponential():
            return warmup * float(schedule.factor ** int(epoch))
    return warmup * float(max(0.0, 1 - epoch / n_epochs) ** schedule.power)


class Rates(Extension):
    """Sets the learning rates of the next step. Not collective: equal on all ranks."""

    trigger = 1, 'iteration'
    name = 'rates'

    def __init__(self, schedule: Any, n_epochs: int, rated: list[Rated]) -> None:
        self._schedule, self._n_epochs, self._rated = schedule, n_epochs, rated

    def initialize(self, trainer: Any) -> None:
        """Set those of the first step, also of a training that goes on."""
        self(trainer)

    def __call__(self, trainer: Any) -> None:
        """Set the rates by how many epochs have passed."""
        epoch = float(trainer.updater.epoch_detail)
        by = factor(self._schedule, epoch, self._n_epochs)
        for optimizer, name, rate in self._rated:
            setattr(optimizer, name, rate * by)
