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

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mnx import kernels
from mnx.arrays import Array
from mnx.communicators.chunks import Line, Stretch, share
from mnx.errors import TransportError
from mnx.packing import DTYPES_IN_C, Row, add_up, concatenate
from mnx.transports.base import SharedWindow, Transport

BUFFERS = 3
KEPT = 1000  # chunks of plans of single arrays


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
    sent : array
        Where in the window this rank puts them.
    row : Row
        Where in the window their sum lies, in the shapes of the arrays.
    """

    stretch: Stretch
    sent: Array
    row: Row

    def copy_out(self, into: list[Array]) -> None:
        """Copy the sum into arrays, if there are any."""
        if into:
            self.row.copy_to(self.stretch.of(into))


@dataclass
class Chunk:
    """One chunk as one rank sees it.

    Attributes
    ----------
    own : Part
        The share that it sums.
    inputs : list of array
        That share of every rank in the window.
    others : list of Part
        What it copies in for the others, and out when they have summed it.
    """

    own: Part
    inputs: list[Array]
    others: list[Part]

    def cut(self) -> list[int]:
        """Return which arrays are cut."""
        return [i for part in (self.own, *self.others) for i in part.stretch.cut()]


class Plan:
    """How arrays of some shapes go through a window, for one rank.

    Attributes
    ----------
    dtype : numpy.dtype
    borders : array of int64
        Where, in bytes, the arrays would begin in a row, and end.
    """

    def __init__(
        self, line: Line, dtype: np.dtype[Any], make_chunks: Callable[[], list[Chunk]]
    ) -> None:
        self.dtype = dtype
        self.borders = np.array(line.borders, np.int64) * dtype.itemsize
        self._make_chunks = make_chunks

    @functools.cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks, for the loop in Python; the one in C finds them by itself."""
        return self._make_chunks()

    @functools.cached_property
    def cut(self) -> list[int]:
        """The arrays that are cut somewhere, which takes contiguous ones."""
        return sorted({i for chunk in self.chunks for i in chunk.cut()})


class NodeWindow:
    """Sums lists of arrays over the ranks of one node.

    Parameters
    ----------
    intra : Transport
        The ranks of the node.
    owners : int
        How many of them sum a share of each chunk.
    chunk_bytes : int
        Length of each buffer, a multiple of 32 with room for one element of each rank.
    """

    def __init__(self, intra: Transport, owners: int, chunk_bytes: int) -> None:
        self._rank = intra.rank
        self._size = intra.size
        self._owners = owners
        self._chunk_bytes = chunk_bytes
        self._window: SharedWindow = intra.allocate_shared(2 * BUFFERS * chunk_bytes)
        self._buffers: dict[Any, Array] = {}
        self._plans: dict[Any, Plan] = {}
        self._kept = 0  # chunks of them
        self._is_broken = False  # as a sum is until its end

    def plan(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> Plan:
        """Cut arrays of these shapes, summed in `dtype`, into chunks for this rank."""
        line, length = Line(shapes), self._chunk_bytes // dtype.itemsize

        def make_chunks() -> list[Chunk]:
            borders = itertools.pairwise([*range(0, line.length, length), line.length])
            return [self._chunk(line, dtype, k, *ends) for k, ends in enumerate(borders)]

        return Plan(line, dtype, make_chunks)

    def sum(
        self,
        plan: Plan,
        arrays: Sequence[Array],
        steps: Steps,
        into: Sequence[Array] | None = None,
    ) -> None:
        """Replace arrays by the sum over the node's ranks, in place. Collective.

        Or put the sum `into` others, which are contiguous; an empty list: this rank wants none.

        Raises
        ------
        TransportError
            A signal, or another error, has ended an earlier sum on this rank.
        """
        if self._is_broken:
            raise TransportError(
                'an earlier sum through the shared memory of this node was interrupted on this '
                'rank, so the ranks may no longer be in step. Create a new communicator.'
            )
        self._is_broken = True
        wanted = arrays if into is None else into
        if not self._sum_in_c(plan, list(arrays), list(wanted), steps):
            self._sum_in_python(plan, arrays, steps, into)
        self._is_broken = False

    def _sum_in_c(self, plan: Plan, arrays: list[Array], into: list[Array], steps: Steps) -> bool:
        """Do all of `_sum` at once; or nothing, where arrays or steps are not for that."""
        slots = self._window.places if plan.dtype in DTYPES_IN_C else None
        divisor = None if steps.changes_input() else steps.divisor()
        if slots is None or divisor is None or self._owners < self._size:
            return False
        places = np.zeros((2, len(arrays)), np.int64)
        given = arrays, plan.dtype, places[0], False
        wanted = into, plan.dtype, places[1, : len(into)], True
        if not (kernels.addresses(*given) and kernels.addresses(*wanted)):
            return False
        progress = np.zeros(2, np.int64)
        work = slots, self._rank, self._window.looks, progress, places, plan.borders
        while not kernels.sum_in_window(*work, self._chunk_bytes, plan.dtype.itemsize, divisor):
            self._window.wait()
        return True

    def _sum_in_python(
        self, plan: Plan, arrays: Sequence[Array], steps: Steps, into: Sequence[Array] | None
    ) -> None:
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
        key = sent.size, sent.dtype
        plan = self._plans.get(key) or self._keep(key, self.plan([sent.shape], sent.dtype))
        self.sum(plan, [sent], steps, [] if into is None else [into])

    def _keep(self, key: object, plan: Plan) -> Plan:
        if self._kept >= KEPT:
            self._plans.clear()
            self._kept = 0
        self._plans[key] = plan
        self._kept += 1 + int(plan.borders[-1]) // self._chunk_bytes
        return plan

    def _sum(self, plan: Plan, arrays: list[Array], into: list[Array], steps: Steps) -> None:
        chunks, count = plan.chunks, len(plan.chunks)
        scales = steps.changes_input()
        _copy_in(chunks[0], arrays, steps, scales)
        for k in range(count + 1):
            self._window.arrive()
            if k + 1 < count:
                _copy_in(chunks[k + 1], arrays, steps, scales)
            if k >= 2:
                _copy_out(chunks[k - 2], into)
            self._window.wait()
            if k < count and chunks[k].own.stretch.length:
                self._sum_share(chunks[k], arrays, into, steps)
        _copy_out(chunks[count - 1], into)

    def close(self) -> None:
        """Free the window. Collective."""
        self._plans.clear()
        self._buffers.clear()
        self._window.close()

    def _chunk(self, line: Line, dtype: np.dtype[Any], k: int, start: int, stop: int) -> Chunk:
        own = share(stop - start, self._rank, self._owners)
        places = [own, slice(0, own.start), slice(own.stop, stop - start)]
        mine, *others = [self._part(line, dtype, k, place, start + place.start) for place in places]
        others = [part for part in others if part.stretch.length]
        return Chunk(mine, self._inputs(dtype, k, own), others)

    def _part(self, line: Line, dtype: np.dtype[Any], k: int, place: slice, start: int) -> Part:
        """Return the elements from `start` on that go through a place in the buffers of chunk k."""
        stretch = line.stretch(start, start + place.stop - place.start)
        sent = self._buffer(dtype, self._rank, k % BUFFERS)[place]
        result = self._buffer(dtype, 0, BUFFERS + k % BUFFERS)[place]
        return Part(stretch, sent, Row(result, stretch.shapes(line.shapes)))

    def _inputs(self, dtype: np.dtype[Any], k: int, place: slice) -> list[Array]:
        return [self._buffer(dtype, rank, k % BUFFERS)[place] for rank in range(self._size)]

    def _buffer(self, dtype: np.dtype[Any], rank: int, number: int) -> Array:
        """Return a buffer of a rank: first those of inputs, then, on rank 0, those of results."""
        found = self._buffers.get((dtype, rank, number))
        if found is None:
            first = number * self._chunk_bytes
            found = self._window.slots[rank][first : first + self._chunk_bytes].view(dtype)
            self._buffers[dtype, rank, number] = found
        return found

    def _sum_share(
        self, chunk: Chunk, arrays: list[Array], into: list[Array], steps: Steps
    ) -> None:
        own, parts = chunk.own, chunk.inputs
        total = own.row.buffer
        views = own.stretch.of(arrays)
        flat = None if steps.changes_input() else _as_it_is(views, total)
        if flat is None:
            concatenate(views, own.sent)
            steps.before(own.sent)
        else:
            parts = parts.copy()
            parts[self._rank] = flat
        # and out again, while the core has it in its cache
        divisor = steps.divisor()
        twin = None if divisor is None or not into else _as_it_is(own.stretch.of(into), total)
        add_up(parts, total, 1.0 if divisor is None else divisor, twin)
        if divisor is None:
            steps.after(total)
        if twin is None:
            own.copy_out(into)


def _copy_in(chunk: Chunk, arrays: list[Array], steps: Steps, scales: bool) -> None:
    for part in chunk.others:
        concatenate(part.stretch.of(arrays), part.sent)
        if scales:
            steps.before(part.sent)


def _copy_out(chunk: Chunk, into: list[Array]) -> None:
    for part in chunk.others:
        part.copy_out(into)


def _as_it_is(views: list[Array], total: Array) -> Array | None:
    """Return the share as a flat array, if it is one in which sums can be."""
    view = views[0]
    is_one = len(views) == 1 and view.dtype == total.dtype and view.flags.c_contiguous
    return view.reshape(-1) if is_one else None
