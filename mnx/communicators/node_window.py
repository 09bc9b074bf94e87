"""A sum over ranks through a small window of shared memory that stays in cache.

Every rank has two input halves in the window, and the node two result halves; chunk after chunk
goes through them, one barrier each::

    rank 0   gradients ──1 in──► [ input 0 ] ─┐                    ┌──3 out──► gradients
    rank 1   gradients ──1 in──► [ input 1 ] ─┼─2 sum─► [ result ] ┼──3 out──► gradients
    rank 2   gradients ──1 in──► [ input 2 ] ─┘                    └──3 out──► gradients

    between two barriers, rank r:
      (2) sums its share of chunk k over all inputs, in rank order, and scales it
      (1) copies chunk k+1 in, to the other half
      (3) copies chunk k-1 out, from the other half

The halves make one barrier enough: what is written in a phase was last read in the phase before.
Every element is summed by one rank of the node only, in an order that never changes, so all ranks
get the same bits, every time. Measured: memory traffic is that of two copies, not of the 5n+1
that a window as long as the gradients takes (see ``benchmarks/``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnx.arrays import Array
from mnx.communicators.chunks import Span, cut, share
from mnx.packing import concatenate, shaped_views
from mnx.transports.base import SharedWindow, Transport

HALVES = 2

Step = Callable[[Array], None]


class NodeWindow:
    """Sums lists of arrays over the ranks of one node.

    Parameters
    ----------
    intra : Transport
        The ranks of the node.
    owners : int
        How many of them sum a share of each chunk.
    chunk_bytes : int
        Length of each half.
    """

    def __init__(self, intra: Transport, owners: int, chunk_bytes: int) -> None:
        self._intra = intra
        self._owners = owners
        self._chunk_bytes = chunk_bytes
        self._window: SharedWindow = intra.allocate_shared(2 * HALVES * chunk_bytes)

    def chunk_length(self, dtype: np.dtype[Any]) -> int:
        """Return the number of elements in a chunk."""
        return self._chunk_bytes // dtype.itemsize

    def sum(self, plan: Plan, arrays: Sequence[Array], before: Step, after: Step) -> None:
        """Replace contiguous arrays by the sum over the node's ranks, in place. Collective.

        `before` is applied to each chunk of this rank's input, `after` to each of its sums: to
        scale them, or to add what other nodes have.
        """
        halves = [self._halves(plan.dtype, rank) for rank in range(self._intra.size)]
        results = self._results(plan.dtype)
        last = len(plan.chunks) - 1
        self._copy_in(plan, 0, arrays, halves, before)
        self._window.barrier()
        for k in range(last + 1):
            self._reduce(
                plan.lengths[k], [h[k % HALVES] for h in halves], results[k % HALVES], after
            )
            if k < last:
                self._copy_in(plan, k + 1, arrays, halves, before)
            if k > 0:
                _copy_out(plan, k - 1, arrays, results)
            self._window.barrier()
        _copy_out(plan, last, arrays, results)

    def close(self) -> None:
        """Free the window. Collective."""
        self._window.close()

    def _halves(self, dtype: np.dtype[Any], rank: int) -> list[Array]:
        """Return a rank's two input halves."""
        slot = self._window.slots[rank].view(dtype)
        n = self.chunk_length(dtype)
        return [slot[:n], slot[n : 2 * n]]

    def _results(self, dtype: np.dtype[Any]) -> list[Array]:
        """Return the two result halves, which lie behind rank 0's inputs."""
        slot = self._window.slots[0].view(dtype)
        n = self.chunk_length(dtype)
        return [slot[2 * n : 3 * n], slot[3 * n : 4 * n]]

    def _copy_in(
        self, plan: Plan, k: int, arrays: Sequence[Array], halves: list[list[Array]], before: Step
    ) -> None:
        mine = halves[self._intra.rank][k % HALVES][: plan.lengths[k]]
        concatenate([span.of(arrays) for span in plan.chunks[k]], mine)
        before(mine)

    def _reduce(self, length: int, inputs: list[Array], result: Array, after: Step) -> None:
        mine = share(length, self._intra.rank, self._owners)
        total = result[mine]
        _sum([half[mine] for half in inputs], total)
        if total.size:
            after(total)


class Plan:
    """How arrays of some shapes go through a window, chunk by chunk.

    Attributes
    ----------
    dtype : numpy.dtype
        What is summed.
    chunks : list of list of Span
    lengths : list of int
        Number of elements of each chunk.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any], length: int
    ) -> None:
        self.dtype = dtype
        self.chunks = cut(shapes, length)
        self.lengths = [sum(s.stop - s.start for s in chunk) for chunk in self.chunks]
        self._shapes = shapes
        self._views: dict[int, list[Array]] = {}
        self._viewed: Array | None = None

    def views(self, k: int, result: Array) -> list[Array]:
        """Return views into `result`, one for each span of chunk `k`; kept for the next time."""
        if k not in self._views:
            self._views[k] = shaped_views(result, [self._shape(span) for span in self.chunks[k]])
        return self._views[k]

    def _shape(self, span: Span) -> tuple[int, ...]:
        return self._shapes[span.member] if span.whole else (span.stop - span.start,)


def _sum(parts: list[Array], total: Array) -> None:
    """Add up the parts from left to right."""
    if len(parts) == 1:
        total[...] = parts[0]
        return
    np.add(parts[0], parts[1], out=total)
    for part in parts[2:]:
        np.add(total, part, out=total)


def _copy_out(plan: Plan, k: int, arrays: Sequence[Array], results: list[Array]) -> None:
    views = plan.views(k, results[k % HALVES])
    for span, view in zip(plan.chunks[k], views, strict=True):
        span.of(arrays)[...] = view
