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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mnx.arrays import Array
from mnx.communicators.chunks import Line, Stretch, share
from mnx.packing import Row, add_up, concatenate
from mnx.transports.base import SharedWindow, Transport

BUFFERS = 3
KEPT = 100  # plans of single arrays


class Steps(Protocol):
    """What is done to numbers on their way through the window."""

    def before(self, part: Array) -> None:
        """Change what this rank contributes, in place."""

    def after(self, total: Array) -> None:
        """Change the sum over the node, in place."""

    def changes_input(self) -> bool:
        """Tell whether `before` does anything."""

    def divisor(self) -> float | None:
        """Return by what `after` divides, if it does nothing else."""


@dataclass
class Part:
    """A share of a chunk, or the shares beside one another.

    Attributes
    ----------
    stretch : Stretch
        Which elements of the arrays it is.
    place : slice
        Where in a buffer.
    row : Row or None
        That place in the result buffer, in the shapes of the arrays; kept for the next time.
    """

    stretch: Stretch
    place: slice
    row: Row | None = None


@dataclass
class Chunk:
    """One chunk as one rank sees it.

    Attributes
    ----------
    own : Part
        The share that it sums.
    others : list of Part
        What it copies in for the others.
    wanted : list of Part
        What it copies out when they have summed it.
    """

    own: Part
    others: list[Part]
    wanted: list[Part]

    def cut(self) -> list[int]:
        """Return which arrays are cut."""
        return [i for part in (self.own, *self.others) for i in part.stretch.cut()]


class Plan:
    """How arrays of some shapes go through a window, for one rank.

    Attributes
    ----------
    shapes : list of tuple of int
    dtype : numpy.dtype
    chunks : list of Chunk
    cut : list of int
        The arrays that are cut somewhere, which takes contiguous ones.
    shared : bool
        Whether other ranks want what this one has summed.
    """

    def __init__(
        self, line: Line, dtype: np.dtype[Any], chunks: list[Chunk], shared: bool = True
    ) -> None:
        self.shapes = line.shapes
        self.dtype = dtype
        self.chunks = chunks
        self.shared = shared
        self.cut = sorted({i for chunk in chunks for i in chunk.cut()})


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
        self._known: dict[np.dtype[Any], tuple[list[list[Array]], list[Array]]] = {}
        self._plans: dict[Any, Plan] = {}

    def plan(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> Plan:
        """Cut arrays of these shapes, summed in `dtype`, into chunks for this rank."""
        line, length = Line(shapes), self._chunk_bytes // dtype.itemsize
        borders = [*range(0, line.length, length), line.length]
        chunks = [self._chunk(line, start, stop) for start, stop in itertools.pairwise(borders)]
        return Plan(line, dtype, chunks)

    def sum(
        self,
        plan: Plan,
        arrays: Sequence[Array],
        steps: Steps,
        into: Sequence[Array] | None = None,
    ) -> None:
        """Replace arrays by the sum over the node's ranks, in place. Collective.

        Or put the sum `into` others, which are contiguous; an empty list: this rank wants none.
        """
        strided = [i for i in plan.cut if not arrays[i].flags.c_contiguous]
        flat = list(arrays)
        for i in strided:
            flat[i] = arrays[i].copy(order='C')
        with np.errstate(all='ignore'):  # as MPI: an error would be one rank's alone
            self._sum(plan, flat, flat if into is None else list(into), steps)
        for i in strided if into is None else ():
            arrays[i][...] = flat[i]

    def sum_flat(self, sent: Array, into: Array | None, steps: Steps) -> None:
        """Put the sum of flat arrays `into` another, on the ranks that want it. Collective."""
        plan = self._kept(self._plan_of_one, sent.size, sent.dtype)
        self.sum(plan, [sent], steps, [] if into is None else [into])

    def sum_rows(self, sent: Array, into: Array, steps: Steps) -> None:
        """Put the sum of the ranks' r-th rows `into` an array of rank r. Collective."""
        rows = sent.reshape(self._size, -1)
        plan = self._kept(self._plan_of_rows, rows.shape[1], sent.dtype)
        self.sum(plan, list(rows), steps, [into] * self._size)

    def _sum(self, plan: Plan, arrays: list[Array], into: list[Array], steps: Steps) -> None:
        inputs, results = self._buffers(plan.dtype)
        count = len(plan.chunks)
        self._copy_in(plan, 0, arrays, inputs, steps)
        for k in range(count + 1):
            self._window.arrive()
            if k + 1 < count:
                self._copy_in(plan, k + 1, arrays, inputs, steps)
            if k >= 2:
                self._copy_out(plan, k - 2, into, results)
            self._window.wait()
            if k < count:
                self._sum_share(plan, k, arrays, into, steps)
        self._copy_out(plan, count - 1, into, results)

    def close(self) -> None:
        """Free the window. Collective."""
        self._known.clear()
        self._plans.clear()
        self._window.close()

    def _chunk(self, line: Line, start: int, stop: int) -> Chunk:
        own = share(stop - start, self._rank, self._owners)
        places = [own, slice(0, own.start), slice(own.stop, stop - start)]
        mine, *others = [
            Part(line.stretch(start + place.start, start + place.stop), place) for place in places
        ]
        others = [part for part in others if part.stretch.length]
        return Chunk(mine, others, others)

    def _plan_of_one(self, length: int, dtype: np.dtype[Any]) -> Plan:
        return self.plan([(length,)], dtype)

    def _plan_of_rows(self, length: int, dtype: np.dtype[Any]) -> Plan:
        line, step = Line([(length,)] * self._size), self._chunk_bytes // dtype.itemsize
        borders = [*range(0, length, step // self._size), length]
        chunks = [self._chunk_of_rows(line, *ends) for ends in itertools.pairwise(borders)]
        return Plan(line, dtype, chunks, shared=False)

    def _kept(
        self, make: Callable[[int, np.dtype[Any]], Plan], length: int, dtype: np.dtype[Any]
    ) -> Plan:
        key = make, length, dtype
        if key not in self._plans:
            if len(self._plans) >= KEPT:
                self._plans.clear()
            self._plans[key] = make(length, dtype)
        return self._plans[key]

    def _chunk_of_rows(self, line: Line, start: int, stop: int) -> Chunk:
        length, step = line.length // self._size, stop - start
        parts: list[Part] = []
        for first in range(0, line.length, length):
            place = slice(len(parts) * step, (len(parts) + 1) * step)
            parts.append(Part(line.stretch(first + start, first + stop), place))
        mine = parts.pop(self._rank)
        return Chunk(mine, parts, [])

    def _buffers(self, dtype: np.dtype[Any]) -> tuple[list[list[Array]], list[Array]]:
        """Return the input buffers of every rank, and the result buffers, which rank 0 holds."""
        if dtype not in self._known:
            ranks = range(self._size)
            inputs = [self._half_of_a_slot(dtype, rank, 0) for rank in ranks]
            self._known[dtype] = inputs, self._half_of_a_slot(dtype, 0, BUFFERS)
        return self._known[dtype]

    def _half_of_a_slot(self, dtype: np.dtype[Any], rank: int, first: int) -> list[Array]:
        slot = self._window.slots[rank]
        return [
            slot[q * self._chunk_bytes : (q + 1) * self._chunk_bytes].view(dtype)
            for q in range(first, first + BUFFERS)
        ]

    def _copy_in(
        self, plan: Plan, k: int, arrays: list[Array], inputs: list[list[Array]], steps: Steps
    ) -> None:
        buffer = inputs[self._rank][k % BUFFERS]
        for part in plan.chunks[k].others:
            concatenate(part.stretch.of(arrays), buffer[part.place])
            steps.before(buffer[part.place])

    def _copy_out(self, plan: Plan, k: int, into: list[Array], results: list[Array]) -> None:
        for part in plan.chunks[k].wanted:
            _copy_out(plan, part, into, results[k % BUFFERS])

    def _sum_share(
        self, plan: Plan, k: int, arrays: list[Array], into: list[Array], steps: Steps
    ) -> None:
        own = plan.chunks[k].own
        if not own.stretch.length:
            return
        inputs, results = self._buffers(plan.dtype)
        total = results[k % BUFFERS][own.place] if plan.shared else own.stretch.of(into)[0]
        parts = [buffers[k % BUFFERS][own.place] for buffers in inputs]
        views = own.stretch.of(arrays)
        flat = None if steps.changes_input() else _as_it_is(views, total)
        if flat is None:
            concatenate(views, parts[self._rank])
            steps.before(parts[self._rank])
        else:
            parts[self._rank] = flat
        # and out again, while the core has it in its cache
        divisor = steps.divisor()
        keeps = plan.shared and divisor is not None and bool(into)
        twin = _as_it_is(own.stretch.of(into), total) if keeps else None
        add_up(parts, total, 1.0 if divisor is None else divisor, twin)
        if divisor is None:
            steps.after(total)
        if twin is None and plan.shared:
            _copy_out(plan, own, into, results[k % BUFFERS])


def _as_it_is(views: list[Array], total: Array) -> Array | None:
    """Return the share as a flat array, if it is one in which sums can be."""
    view = views[0]
    is_one = len(views) == 1 and view.dtype == total.dtype and view.flags.c_contiguous
    return view.reshape(-1) if is_one else None


def _copy_out(plan: Plan, part: Part, into: list[Array], result: Array) -> None:
    if not into:
        return
    if part.row is None:
        part.row = Row(result[part.place], part.stretch.shapes(plan.shapes))
    part.row.copy_to(part.stretch.of(into))
