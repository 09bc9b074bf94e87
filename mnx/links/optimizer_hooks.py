"""Chainer's hooks that need the whole of a gradient whose parts are on many ranks.

They would take this rank's parts for all there is, which differ between ranks, and then so would
the parameters. So for a model with parts ``GradientClipping`` takes the norm over all ranks, which
moves one number; all other models it treats as ever. ``GradientNoise`` draws the noise of the whole
and adds its part: so it is that of one process, and ranks with parts of unequal sizes go on with
equal random states, which parameters without parts need. ``GradientLARS``, which takes norms of
each parameter, refuses a part.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.optimizer_hooks import GradientClipping, GradientLARS, GradientNoise

from mnx.arrays import Array
from mnx.errors import ArgumentError
from mnx.links.split_parameter import Part, SplitParameter

if TYPE_CHECKING:
    from mnx.communicators import Communicator


def _clip(model: chainer.Link, threshold: float) -> None:
    """Scale all gradients in place, so that their common norm is not above the threshold."""
    params = [p for _, p in sorted(model.namedparams(), key=operator.itemgetter(0))]
    parts: dict[Communicator, list[SplitParameter]] = {}  # in an order that all ranks share
    for param in params:  # also those that have no gradient on this rank
        if isinstance(param, SplitParameter):
            parts.setdefault(param.part.comm, []).append(param)
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
        _clip(optimizer.target, self.threshold)
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
