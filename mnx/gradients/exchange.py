"""The plain gradient exchange: after the whole backward pass. The specification of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import chainer

    from mnx.communicators import Communicator


class GradientExchange:
    """Replaces the gradients of a model by their mean over the global batch.

    With local batches of b_0, b_1, ... samples and losses that are means over them::

        gradient = (b_0 * g_0 + b_1 * g_1 + ...) / (b_0 + b_1 + ...)

    which is the gradient of the mean loss over all samples of all ranks.
    """

    def __init__(self, comm: Communicator, zero_fill: bool) -> None:
        self._comm = comm
        self._zero_fill = zero_fill

    def __call__(self, model: chainer.Link, weight: float | None, fact: str = '') -> None:
        """Exchange. Collective: same model on all ranks, a weight or none, the same `fact`."""
        self._comm.multi_node_mean_grad(model, self._zero_fill, weight=weight, fact=fact)
