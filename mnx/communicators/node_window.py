"""A sum over ranks through a small window of shared memory that stays in cache.

Every rank has three input buffers in the window, and the node three result buffers; chunk after
chunk goes through them::

    rank 0   gradients ──1 in──► [ inputs ] ─┐                     ┌──3 out──► gradients
    rank 1   gradients ──1 in──► [ inputs ] ─┼─2 sum─► [ results ] ┼──3 out──► gradients
    rank 2   gradients ──1 in──► [ inputs ] ─┘                     └──3 out──► gradients

    turn k of rank r:
      says that it has arrived: its chunk k is in, its share of chunk k-1 is summed
      (1) copies chunk k+1 in, all but its own share
      (3) copies chunk k-2 out
      waits until all ranks have arrived
      (2) sums its share of chunk k over all ranks, in rank order, and scales it

A rank that is a little late keeps nobody waiting, as long as the others have copies to make. Three
buffers make one meeting a turn enough: chunk k+1 comes in where chunk k-2 was, which all ranks have
summed before they arrived at turn k-1; the sum of chunk k lies where that of chunk k-3 was, which
all have copied out before they arrived at turn k.

Every element is summed by one rank of the node only, in an order that never changes, so all ranks
get the same bits, every time. See ``benchmarks/`` for what it takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mnx.arrays import Array
from mnx.communicators.chunks import Line, Stretch, share
from mnx.packing import concatenate, copy_each, shaped_views
from mnx.transports.base import SharedWindow, Transport

BUFFERS = 3


class Steps(Protocol):
    """What is done to numbers on their way through the window."""

    def before(self, part: Array) -> None:
        """Change what this rank contributes, in place."""

    def after(self, total: Array) -> None:
        """Change the sum over the node, in place."""

    def changes_input(self) -> bool:
        """Tell whether `before` does anything."""


@dataclass
class Chunk:
    """One chunk as one rank sees it.

    Attributes
    ----------
    sent : list of (Stretch, slice)
        What it copies in for the others, and where to.
    own : Stretch
        Its own share, which it sums.
    share : slice
        Where that is.
    all : Stretch
        What it copies out.
    views : list of arrays or None
        The result buffer, cut into the shapes of `all`; kept for the next time.
    """

    sent: list[tuple[Stretch, slice]]
    own: Stretch
    share: slice
    all: Stretch
    views: list[Array] | None = None

    def stretches(self) -> list[Stretch]:
        """Return all stretches of arrays that are looked at."""
        return [*(stretch for stretch, _ in self.sent), self.own, self.all]


class Plan:
    """How arrays of some shapes go through a window, for one rank.

    Attributes
    ----------
    shapes : list of tuple of int
    dtype : numpy.dtype
    chunks : list of Chunk
    cut : list of int
        The arrays that are cut somewhere, which takes contiguous ones.
    """

    def __init__(self, line: Line, dtype: np.dtype[Any], chunks: list[Chunk]) -> None:
        self.shapes = line.shapes
        self.dtype = dtype
        self.chunks = chunks
        self.cut = sorted({i for chunk in chunks for s in chunk.stretches() for i in s.cut()})


class NodeWindow:
    """Sums lists of arrays over the ranks of one node.

    Parameters
    ----------
    intra : Transport
        The ranks of the node.
    owners : int
        How many of them sum a share of each chunk.
    chunk_bytes : int
        Length of each buffer, a multiple of 16.
    """

    def __init__(self, intra: Transport, owners: int, chunk_bytes: int) -> None:
        self._rank = intra.rank
        self._size = intra.size
        self._owners = owners
        self._chunk_bytes = chunk_bytes
        self._window: SharedWindow = intra.allocate_shared(2 * BUFFERS * chunk_bytes)

    def plan(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> Plan:
        """Cut arrays of these shapes, summed in `dtype`, into chunks for this rank."""
        line, length = Line(shapes), self._chunk_bytes // dtype.itemsize
        borders = [*range(0, line.length, length), line.length]
        chunks = [self._chunk(line, start, stop) for start, stop in itertools.pairwise(borders)]
        return Plan(line, dtype, chunks)

    def sum(self, plan: Plan, arrays: Sequence[Array], steps: Steps) -> None:
        """Replace arrays by the sum over the node's ranks, in place. Collective."""
        strided = [i for i in plan.cut if not arrays[i].flags.c_contiguous]
        flat = list(arrays)
        for i in strided:
            flat[i] = arrays[i].copy(order='C')
        self._sum(plan, flat, steps)
        for i in strided:
            arrays[i][...] = flat[i]

    def _sum(self, plan: Plan, arrays: list[Array], steps: Steps) -> None:
        inputs = [self._buffers(plan.dtype, rank, 0) for rank in range(self._size)]
        results = self._buffers(plan.dtype, 0, BUFFERS)
        count = len(plan.chunks)
        self._copy_in(plan, 0, arrays, inputs, steps)
        for k in range(count + 1):
            self._window.arrive()
            if k + 1 < count:
                self._copy_in(plan, k + 1, arrays, inputs, steps)
            if k >= 2:
                _copy_out(plan, k - 2, arrays, results)
            self._window.wait()
            if k < count:
                self._sum_share(plan, k, arrays, inputs, results[k % BUFFERS], steps)
        _copy_out(plan, count - 1, arrays, results)

    def close(self) -> None:
        """Free the window. Collective."""
        self._window.close()

    def _chunk(self, line: Line, start: int, stop: int) -> Chunk:
        own = share(stop - start, self._rank, self._owners)
        others = [slice(0, own.start), slice(own.stop, stop - start)]
        return Chunk(
            [
                (line.stretch(start + s.start, start + s.stop), s)
                for s in others
                if s.stop > s.start
            ],
            line.stretch(start + own.start, start + own.stop),
            own,
            line.stretch(start, stop),
        )

    def _buffers(self, dtype: np.dtype[Any], rank: int, first: int) -> list[Array]:
        """Return half of a rank's slot: its inputs, or behind rank 0's the results."""
        slot = self._window.slots[rank]
        return [
            slot[q * self._chunk_bytes : (q + 1) * self._chunk_bytes].view(dtype)
            for q in range(first, first + BUFFERS)
        ]

    def _copy_in(
        self, plan: Plan, k: int, arrays: Sequence[Array], inputs: list[list[Array]], steps: Steps
    ) -> None:
        buffer = inputs[self._rank][k % BUFFERS]
        for stretch, where in plan.chunks[k].sent:
            part = buffer[where]
            concatenate(stretch.of(arrays), part)
            steps.before(part)

    def _sum_share(
        self,
        plan: Plan,
        k: int,
        arrays: Sequence[Array],
        inputs: list[list[Array]],
        result: Array,
        steps: Steps,
    ) -> None:
        chunk = plan.chunks[k]
        if not chunk.own.length:
            return
        total = result[chunk.share]
        parts = [buffers[k % BUFFERS][chunk.share] for buffers in inputs]
        parts[self._rank] = _own_part(chunk.own.of(arrays), parts[self._rank], steps)
        _add_up(parts, total)
        steps.after(total)


def _own_part(views: list[Array], place: Array, steps: Steps) -> Array:
    """Return this rank's share as one flat array: itself if it is one, else a copy in `place`."""
    view = views[0]
    as_it_is = view.dtype == place.dtype and view.flags.c_contiguous and not steps.changes_input()
    if len(views) == 1 and as_it_is:
        return view.reshape(-1)
    concatenate(views, place)
    steps.before(place)
    return place


def _add_up(parts: list[Array], total: Array) -> None:
    """Add up the parts from left to right."""
    if len(parts) == 1:
        total[...] = parts[0]
        return
    np.add(parts[0], parts[1], out=total)
    for part in parts[2:]:
        np.add(total, part, out=total)


def _copy_out(plan: Plan, k: int, arrays: Sequence[Array], results: list[Array]) -> None:
    chunk = plan.chunks[k]
    if chunk.views is None:
        chunk.views = shaped_views(results[k % BUFFERS], chunk.all.shapes(plan.shapes))
    copy_each(chunk.views, chunk.all.of(arrays))
