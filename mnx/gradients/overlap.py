"""An exchange of gradients that starts while backward still runs.

    backward    layer 4 ──► layer 3 ──► layer 2 ──► layer 1 ──► all done
    ready          W4 b4       W3 b3       W2 b2       W1 b1       │
    buckets           [ 0: W4 b4 W3 ]         [ 1: b3 W2 b2 ]  [ 2: W1 b1 ]
                                    └─ start 0           └─ start 1   start 2, wait, hand out

What is sent early is a *guess*: that a gradient which is ready is the whole one. It is checked when
backward is done, against the whole gradients, and ranks tell each other; a bucket in which any rank
was wrong goes once more. So the result never depends on what was known early, nor on the shape of
the ranks' graphs:

- Between two ends of backward every rank starts every bucket once, in the order of their numbers.
- They have a communicator of their own, on which nothing else travels, and to start is not to
  wait. So ranks may run through their graphs in any order.
- A gradient that was wrong once is late from then on: it waits for the end, on all ranks.

The same buckets are summed whether they start early or late, so the bits are the same.

References: Das et al. 2016 (arXiv:1602.06709), Li et al. 2020 (arXiv:2006.15704).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from mnx.arrays import Array, module_of, on_gpu
from mnx.communicators.array_messages import PendingArray
from mnx.communicators.parameters import Layout, ParameterTable
from mnx.errors import ArgumentError
from mnx.gradients import buckets
from mnx.packing import shaped_views

if TYPE_CHECKING:
    from mnx.communicators import Communicator


class OverlappedExchange:
    """Averages the gradients of one model, over and over.

    Collective to make.

    Parameters
    ----------
    model : chainer.Link
        All its parameters have values.
    comm : Communicator
    op : {'mean', 'sum'}
    bucket_bytes : int

    Attributes
    ----------
    params : list of chainer.Parameter
        Sorted by name.
    overlaps : bool
        Set it to False and everything starts when backward is done; the bits are the same.
    started_early : int
        How many buckets of the latest exchange started before backward was done.
    """

    def __init__(self, model: chainer.Link, comm: Communicator, op: str, bucket_bytes: int) -> None:
        self._model, self._comm, self._op, self._cap = model, comm, op, bucket_bytes
        self._table = ParameterTable(model)
        self.params: list[chainer.Parameter] = self._table.parameters()
        self._layout = Layout(self._table.names, [p.array for p in self.params])
        channel = comm.split(0, comm.rank)
        assert channel is not None
        self._channel = channel
        self._channel.meetings.checks = False  # to compare would be to wait
        self._late: set[int] = set()
        self._order: list[int] | None = None  # known when backward has run once
        self._buckets: list[list[int]] = []
        self._seen: dict[int, Array] = {}
        self._sent: dict[int, Array] = {}
        self._flying: list[PendingArray] = []
        self._rounds = 0  # in which this rank has started every bucket
        self._broken = False
        self.overlaps = True
        self.started_early = 0

    # --- while backward runs ---------------------------------------------------------------------

    def wants(self, index: int) -> bool:
        """Tell whether the gradient of this parameter is worth a signal."""
        return index not in self._late

    def ready(self, index: int, gradient: Array) -> None:
        """Take this rank's gradient of a parameter, which is whole as far as known."""
        self._seen[index] = gradient
        if self._order is None or self._broken or not self.overlaps or on_gpu(gradient):
            return
        while self._is_full(len(self._flying)):
            self._sent.update((i, self._seen[i]) for i in self._buckets[len(self._flying)])
            self._start_next(self._seen)
        next((p for p in self._flying if not p.test()), None)  # MPI moves when it is asked

    def _is_full(self, bucket: int) -> bool:
        return bucket < len(self._buckets) and all(i in self._seen for i in self._buckets[bucket])

    def _start_next(self, gradients: dict[int, Array]) -> None:
        members = self._buckets[len(self._flying)]
        self._flying.append(self._start(members, gradients))

    def _start_the_rest(self, gradients: dict[int, Array]) -> None:
        while len(self._flying) < len(self._buckets):
            self._start_next(gradients)
        self._rounds += 1

    def _start(self, members: Sequence[int], gradients: dict[int, Array]) -> PendingArray:
        parts = [self._part(i, gradients.get(i)) for i in members]
        xp = module_of(parts[0])
        whole = parts[0] if len(parts) == 1 else xp.concatenate(parts)
        return self._channel.start_allreduce(whole, self._op)

    def _part(self, index: int, gradient: Array | None) -> Array:
        if gradient is not None:
            return gradient.reshape(-1)
        shape, dtype = self._layout.kinds[index]
        return self.params[index].xp.zeros(math.prod(shape), dtype)

    # --- when it is done -------------------------------------------------------------------------

    def finish(self, totals: Sequence[Array | None]) -> list[Array | None]:
        """Return the gradients' means (or sums), given this rank's whole gradients.

        Collective: all ranks call it. None for a parameter that no rank has used.
        """
        used, late, again = self.agree(totals)
        whole = {i: g for i, g in enumerate(totals) if g is not None}
        self.started_early = len(self._flying)
        self._learn(late)
        self._start_the_rest(whole)
        results = self._collect(self._buckets, self._flying)
        for members in self._buckets:
            if again.intersection(members):
                results.update(self._collect([members], [self._start(members, whole)]))
        self._forget()
        if late:
            self._lay_out()
        return [results[i] if i in used else None for i in range(len(self.params))]

    def agree(self, totals: Sequence[Array | None]) -> tuple[set[int], set[int], set[int]]:
        """Return what any rank has used, what was seen too early, and what was sent wrongly.

        Collective: all ranks call it. What it raises, all raise.
        """
        try:
            with self._comm._meet('backward of an injected model') as meeting:
                meeting.bring(self._op, f'layout={self._layout.digest:08x}')
                meeting.detail(self._layout.describe)
                self._check()
        except Exception:
            self._break_off()
            raise
        flags = np.zeros((3, len(totals)), np.uint8)
        flags[0] = [g is not None for g in totals]
        flags[1] = [g is not self._seen.get(i, g) for i, g in enumerate(totals)]
        flags[2] = [g is not self._sent.get(i, g) for i, g in enumerate(totals)]
        self._comm._control.all_reduce(flags.reshape(-1), 'max')
        used, late, again = (set(np.flatnonzero(row).tolist()) for row in flags)
        return used, late, again

    def _check(self) -> None:
        if self._broken:
            raise ArgumentError(
                'inject_allreduce: the exchange before this one failed on some rank, so the ranks '
                'are out of step. Remove it and inject it anew.'
            )
        now: list[Any] = self._table.parameters() if self._table.is_current(self._model) else []
        if len(now) != len(self.params) or not all(map(operator.is_, now, self.params)):
            raise ArgumentError(
                'inject_allreduce: the model has other parameters than when it was injected. '
                'Remove it and inject it anew.'
            )
        kinds = [(p.array.shape, p.array.dtype) for p in self.params]
        if kinds != self._layout.kinds:
            raise ArgumentError(
                'inject_allreduce: parameters have other shapes or dtypes than when they were '
                'injected. Remove it and inject it anew.'
            )

    def _learn(self, late: set[int]) -> None:
        """Take note of what was late, and of rank 0's order, the first time. Collective."""
        self._late |= late
        if self._order is None:
            self._order = self._comm.bcast_obj(list(self._seen))
            self._lay_out()

    def _lay_out(self) -> None:
        """Fill the buckets: what is early, in its order; what was not seen; what is late."""
        assert self._order is not None
        known = dict.fromkeys([*self._order, *range(len(self.params))])
        order = [i for i in known if i not in self._late] + sorted(self._late)
        dtypes = [self.params[i].dtype for i in order]
        sizes = [self.params[i].array.nbytes for i in order]
        # no bucket holds both: it would wait for what is late
        kinds = [(d.str, i in self._late) for d, i in zip(dtypes, order, strict=True)]
        found = buckets.fill(sizes, kinds, self._cap)
        self._buckets = [[order[position] for position in bucket] for bucket in found]

    def _collect(
        self, members: Sequence[Sequence[int]], pending: Sequence[PendingArray]
    ) -> dict[int, Array]:
        """Wait for buckets, and cut them into gradients."""
        found: dict[int, Array] = {}
        for bucket, flight in zip(members, pending, strict=True):
            shapes = [self.params[i].array.shape for i in bucket]
            found.update(zip(bucket, shaped_views(flight.wait(), shapes), strict=True))
        return found

    def _forget(self) -> None:
        self._seen, self._sent, self._flying = {}, {}, []

    def _break_off(self) -> None:
        """Start what other ranks may have started: what is never matched is never done."""
        if not self._broken:
            self._start_the_rest({})
        self._forget()
        self._broken = True

    def close(self) -> None:
        """Free the communicator. Collective."""
        begun = self._rounds + bool(self._flying)
        (rounds,) = self._comm.allreduce(np.array([begun]), 'max')
        while self._rounds < rounds:
            self._start_the_rest({})
            self._forget()
        self._channel.finalize()
