"""Means of gradients that are started now and fetched later."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import chainer
import numpy as np

from mnx.arrays import Array, empty_at
from mnx.communicators.array_messages import ArrayMessages, PendingArray
from mnx.communicators.model_messages import ModelMessages, Scaling, check_finite
from mnx.communicators.parameters import Layout
from mnx.packing import Bucket, concatenate, shaped_views


class PendingMean:
    """Averaged gradients of a model that are still on their way."""

    def __init__(
        self, layout: Layout, buckets: Sequence[Bucket], pending: Sequence[PendingArray]
    ) -> None:
        self._layout, self._buckets, self._pending = layout, buckets, pending
        self._means: dict[str, Array] | None = None

    def test(self) -> bool:
        """Make progress; return whether they are there."""
        return self._means is not None or all(pending.test() for pending in self._pending)

    def wait(self) -> dict[str, Array]:
        """Return the means by the parameters' names when they are there; then always the same."""
        if self._means is None:
            with np.errstate(all='ignore'):  # as multi_node_mean_grad
                self._means = dict(self._unpacked())
            if chainer.is_debug():
                check_finite(list(self._means), list(self._means.values()))
        return self._means

    def _unpacked(self) -> list[tuple[str, Array]]:
        names, kinds = self._layout.names, self._layout.kinds
        found = {i: np.zeros(shape, dtype) for i, (shape, dtype) in enumerate(kinds) if 0 in shape}
        for bucket, pending in zip(self._buckets, self._pending, strict=True):
            views = shaped_views(pending.wait(), bucket.shapes)
            for i, view in zip(bucket.members, views, strict=True):
                found[i] = view.astype(kinds[i][1], copy=False)
        return [(names[i], found[i]) for i in sorted(found)]


class GradientMessages(ArrayMessages, ModelMessages):
    """The array and model methods of a communicator, and what takes both."""

    def start_mean_grad(
        self,
        model: chainer.Link,
        zero_fill: bool = False,
        *,
        weight: float | None = None,
        fact: str = '',
    ) -> PendingMean:
        """Start the mean of the gradients of `model` over the ranks, and return at once.

        Collective: all ranks call it with the same model. Parameters, errors and values as
        `multi_node_mean_grad`; but the gradients stay as they are, and may be changed: copies of
        them travel.

        Returns
        -------
        PendingMean
            ``test()`` makes progress and tells whether they are there; ``wait()`` returns a dict
            of the means by the parameters' names (of a shared link: the first of them).

        Notes
        -----
        The ranks compare what they start, so they meet here. MPI makes progress inside of its
        calls only, so call ``test()`` now and then. An ``allreduce_grad_dtype`` of 16 bits does
        not narrow the wire between nodes here.
        """
        layout, grads, scaling = self._agree_on_gradients(
            'start_mean_grad', model, zero_fill, weight, fact
        )
        dtype = self._config.allreduce_grad_dtype
        as_it_is = self.sums_half and layout.place == 'gpu'
        buckets = layout.sum_plan(dtype, float('inf'), as_it_is)
        pending = [self._start_bucket(bucket, grads, layout.place, scaling) for bucket in buckets]
        return PendingMean(layout, buckets, pending)

    def _start_bucket(
        self, bucket: Bucket, grads: list[Array], place: str, scaling: Scaling
    ) -> PendingArray:
        members = bucket.of(grads)
        buffer = empty_at(place, (sum(x.size for x in members),), bucket.wire)
        with np.errstate(all='ignore'):  # as MPI: an error would be one rank's alone
            concatenate(members, buffer)
            scaling.before(buffer)
        pending = self.start_sum(buffer)
        return self._flights.add(PendingArray(pending, functools.partial(_scaled, buffer, scaling)))


def _scaled(buffer: Array, scaling: Scaling) -> Array:
    with np.errstate(all='ignore'):
        scaling.after(buffer)
    return buffer
