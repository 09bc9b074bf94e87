"""`create_multi_node_optimizer`: which wrapper it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer

from mnx.communicators import Communicator
from mnx.errors import DtypeError
from mnx.gradients.exchange import GradientExchange
from mnx.optimizers.double_buffering import DoubleBufferingOptimizer
from mnx.optimizers.drift import period_of
from mnx.optimizers.multi_node import MultiNodeOptimizer


def create_multi_node_optimizer(
    actual_optimizer: chainer.Optimizer,
    communicator: Communicator,
    double_buffering: bool = False,
    zero_fill: bool = True,
    *,
    weight: Callable[..., float] | None = None,
    check_every: int | None = None,
) -> MultiNodeOptimizer:
    """Wrap a Chainer optimizer so that it trains on all ranks' data.

    Collective: all ranks call it. n ranks with local batches of b samples update as one process
    with a batch of n * b. The learning rate is not changed.

    Parameters
    ----------
    actual_optimizer : chainer.Optimizer
    communicator : Communicator
    double_buffering : bool
        Exchange gradients while the next update computes: each update applies the mean gradients
        of the one before (`DoubleBufferingOptimizer`). Available on every communicator.
    zero_fill : bool
        Count a missing gradient as zeros, so that ranks may use different parameters.
    weight : callable, optional
        ``weight(*args, **kwds)`` returns a rank's share in the mean, from the arguments of the
        loss function. Default: the number of samples, which is the length of the first array or
        list among the arguments.
    check_every : int, optional
        The ranks compare checksums of their parameters after the updates 1, 2, 4, 8 ... and then
        after so many each; 0: never. Default: ``MNX_CHECK_EVERY``, or 1000.

    Returns
    -------
    MultiNodeOptimizer

    Raises
    ------
    DtypeError
        `actual_optimizer` is no optimizer of Chainer (on all ranks), or `communicator` none of
        mnx.
    ArgumentError
        `check_every` is no number of updates (on all ranks).

    Examples
    --------
    >>> import chainer, mnx
    >>> comm = mnx.create_communicator('local')
    >>> optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm)
    >>> optimizer = optimizer.setup(chainer.links.Linear(3, 2))
    """
    _check_communicator(communicator)
    with communicator.together('create_multi_node_optimizer'):
        _check_optimizer(actual_optimizer, communicator)
        period = period_of(check_every)
    if double_buffering:
        return DoubleBufferingOptimizer(actual_optimizer, communicator, zero_fill, weight, period)
    exchange = GradientExchange(communicator, zero_fill)
    return MultiNodeOptimizer(actual_optimizer, communicator, exchange, weight, period)


def _check_communicator(communicator: Any) -> None:
    if not isinstance(communicator, Communicator):
        raise DtypeError(
            'create_multi_node_optimizer: communicator is wrong, expected one that '
            f'mnx.create_communicator made but got {_kind(communicator)}. '
            'Call create_multi_node_optimizer(optimizer, comm), in this order.'
        )


def _check_optimizer(actual_optimizer: Any, comm: Communicator) -> None:
    if not isinstance(actual_optimizer, chainer.Optimizer):
        raise DtypeError(
            'create_multi_node_optimizer: actual_optimizer is wrong, expected a '
            f'chainer.Optimizer but got {_kind(actual_optimizer)} (rank {comm.rank} of '
            f'{comm.size}). Call create_multi_node_optimizer(optimizer, comm), and give the model '
            'to setup() of the result.'
        )


def _kind(value: object) -> str:
    return 'None' if value is None else f'a {type(value).__name__}'
