"""The norm of a gradient whose parts are on many ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from mnx.errors import ArgumentError
from mnx.links.split_parameter import SplitParameter

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
        params = [p for p in optimizer.target.params(False) if p.grad is not None]
        split = [p for p in params if isinstance(p, SplitParameter)]
        whole = [p for p in params if not isinstance(p, SplitParameter)]
        of_parts = self.comm.allreduce(np.array(_squares(split)))
        norm = math.sqrt(float(of_parts) + _squares(whole))
        if norm > self.threshold:
            for param in params:
                param.grad *= self.threshold / norm


def _squares(params: list[Any]) -> float:
    return sum((float((p.grad.astype('f8') ** 2).sum()) for p in params), start=0.0)
