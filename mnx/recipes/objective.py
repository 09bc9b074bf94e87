"""What is minimised and what is reported: one number for each sample, and sums of them.

The cost of a batch is the mean over all its samples, wherever they are. Each rank reports its part
of that mean, so that the sum over the ranks of a column is the mean of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import chainer
import chainer.functions as F

from mnx.arrays import Array, module_of
from mnx.recipes.network import Network

Variable = Any
PerSample = Callable[[Variable, Array], Variable]


class Objective(chainer.Chain):
    """A network with its cost.

    Parameters
    ----------
    network : Network
    cost : str
        A name in `COSTS`.
    train, test : sequence of str
        Names in `METRICS`: what is reported in training and in evaluation.
    batch_size : int
        Of the whole batch, in training.
    """

    def __init__(
        self,
        network: Network,
        cost: str,
        train: Sequence[str],
        test: Sequence[str],
        batch_size: int,
    ) -> None:
        super().__init__()
        with self.init_scope():
            self.network = network
        self._cost = COSTS[cost]
        self._train, self._test = train, test
        self._batch_size = batch_size

    def forward(self, x: Array, t: Array) -> Variable:
        """Return the mean cost of samples `x`, (B, ...), with labels `t`, (B,); report.

        In training what is reported is summed and divided by the size of the whole batch, else by
        that of this one.
        """
        y = self.network(x)
        costs = self._cost(y, t)
        in_training = chainer.config.train
        n = self._batch_size if in_training else len(t)
        values = {'loss': costs.array}
        for name in self._train if in_training else self._test:
            values[name] = METRICS[name](y.array, t)
        chainer.report({name: float(v.sum(dtype='f8')) / n for name, v in values.items()}, self)
        return F.mean(costs)


def _cross_entropy(y: Variable, t: Array) -> Variable:
    return F.softmax_cross_entropy(y, t, reduce='no')


def _binary_cross_entropy(y: Variable, t: Array) -> Variable:
    """Return the sum over classes: each is a question of its own."""
    one_hot = _one_hot(y.array, t).astype('i')
    return F.sum(F.sigmoid_cross_entropy(y, one_hot, normalize=False, reduce='no'), axis=1)


def _squared_error(y: Variable, t: Array) -> Variable:
    return F.sum((y - _one_hot(y.array, t)) ** 2, axis=1) / 2


def _one_hot(y: Array, t: Array) -> Array:
    return (module_of(y).arange(y.shape[1]) == t[:, None]).astype(y.dtype)


COSTS: dict[str, PerSample] = {
    'cross_entropy': _cross_entropy,
    'binary_cross_entropy': _binary_cross_entropy,
    'squared_error': _squared_error,
}


def _accuracy(y: Array, t: Array) -> Array:
    return y.argmax(axis=1) == t


def _misclassification(y: Array, t: Array) -> Array:
    return y.argmax(axis=1) != t


def _log_loss(y: Array, t: Array) -> Array:
    return F.softmax_cross_entropy(y, t, reduce='no').array


def _top_5(y: Array, t: Array) -> Array:
    """Tell whether fewer than 5 classes are above the true one."""
    true = y[module_of(y).arange(len(t)), t][:, None]
    return (y > true).sum(axis=1) < 5


METRICS: dict[str, Callable[[Array, Array], Array]] = {
    'accuracy': _accuracy,
    'misclassification': _misclassification,
    'log_loss': _log_loss,
    'top_5': _top_5,
}
