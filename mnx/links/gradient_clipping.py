"""Hooks of the optimizer that need the whole of a gradient whose parts are on many ranks.

Chainer's own ``GradientClipping`` takes that of the parts that this rank has, which differs between
ranks, and then so would their parameters. So for a model with parts it does what
`ParallelGradientClipping` does; all other models it treats as ever. ``GradientNoise`` draws the
noise of the whole and adds its part: so it is that of one process, and ranks with parts of unequal
sizes go on with equal random states, which parameters without parts need. ``GradientLARS``, which
takes norms of each parameter, refuses a part.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.optimizer_hooks import GradientClipping, GradientLARS, GradientNoise

from mnx.arrays import Array
from mnx.errors import ArgumentError
from mnx.links.split_parameter import Part, SplitParameter

if TYPE_CHECKING:
    from mnx.communicators import Communicator


class ParallelGradientClipping:
    """Chainer's ``GradientClipping`` for a model with parallel links.

    Scales all gradients so that their common norm is not above a threshold. The norm is that of
    the whole gradient, where Chainer's own hook would take that of each rank's part.

    Collective: all ranks call it, in the optimizer's update.

    Parameters
    ----------
    threshold : float
    comm : Communicator
        Of the parallel links.

    Notes
    -----
    Moves one number.
    """

    name = 'GradientClipping'
    call_for_each_param = False
    timing = 'pre'

    def __init__(self, threshold: float, comm: Communicator) -> None:
        if not threshold > 0:
            raise ArgumentError(
                f'ParallelGradientClipping: threshold is positive, but got {threshold}.'
            )
        self.threshold = threshold
        self.comm = comm

    def __call__(self, optimizer: chainer.Optimizer) -> None:
        """Scale the gradients in place."""
        _clip(optimizer.target, self.threshold, lambda param: self.comm)


def _clip(
    model: chainer.Link, threshold: float, comm_of: Callable[[SplitParameter], Communicator]
) -> None:
    params = [p for _, p in sorted(model.namedparams(), key=operator.itemgetter(0))]
    parts: dict[Communicator, list[SplitParameter]] = {}  # in an order that all ranks share
    for param in params:  # also those that have no gradient on this rank
        if isinstance(param, SplitParameter):
            parts.setdefault(comm_of(param), []).append(param)
    squares = _squares([p for p in params if not isinstance(p, SplitParameter)])
    for comm, of_comm in parts.items():
        squares += float(comm.allreduce(np.array(_squares(of_comm))))
    norm = math.sqrt(squares)
    if norm > threshold:
        for param in params:
            if param.grad is not None:
                param.grad *= threshold / norm


def _squares(params: list[Any]) -> float:
    grads = [p.grad for p in params if p.grad is not None]
    return sum((float((grad.astype('f8') ** 2).sum()) for grad in grads), start=0.0)


_clip_as_chainer = GradientClipping.__call__
_scale_as_chainer = GradientLARS.__call__
_add_noise_as_chainer = GradientNoise.__call__


def _clip_any(self: GradientClipping, optimizer: chainer.Optimizer) -> None:
    if any(isinstance(param, SplitParameter) for param in optimizer.target.params()):
        _clip(optimizer.target, self.threshold, lambda param: param.part.comm)
    else:
        _clip_as_chainer(self, optimizer)


def _scale_wholes(self: GradientLARS, rule: Any, param: chainer.Parameter) -> None:
    if isinstance(param, SplitParameter) and param.part.comm.size > 1:
        raise ArgumentError(
            f'GradientLARS: {param.name} is a part of a parameter, of which other ranks have the '
            'rest; expected a whole one, whose norm can be taken. Leave the hook out.'
        )
    _scale_as_chainer(self, rule, param)


def _add_noise_of_whole(self: GradientNoise, rule: Any, param: chainer.Parameter) -> None:
    hook = _of_part(self, param.part) if isinstance(param, SplitParameter) else self
    _add_noise_as_chainer(hook, rule, param)


def _of_part(hook: GradientNoise, part: Part) -> GradientNoise:
    def noise(xp: Any, shape: tuple[int, ...], dtype: Any, _: Any, rule: Any) -> Array:
        return part.cut(hook.noise_func(xp, part.whole_shape(shape), dtype, hook, rule))

    return GradientNoise(hook.eta, noise)


GradientClipping.__call__ = _clip_any
GradientLARS.__call__ = _scale_wholes
GradientNoise.__call__ = _add_noise_of_whole
