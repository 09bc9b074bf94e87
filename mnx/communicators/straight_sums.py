"""A sum over the ranks of a node, straight from their arrays and straight back into them.

Every rank sums a share of all numbers. It reads what the others have there and writes the sum
back there, by `PeerMemory`::

    rank 0   [ share 0 | share 1 ]      rank 0 reads share 0 of rank 1, adds it to its own, and
    rank 1   [ share 0 | share 1 ]      writes the sum into both; rank 1 does so with share 1

Nobody else reads or writes a share, so the ranks meet twice only: when all arrays are there and
when all sums are. Between, no rank waits for another. Chunk by chunk, so that what comes from
afar is added, and the sum sent, while the core has it in its cache.

Every element is summed by one rank only, in rank order, so all ranks get the same bits every
time, and the same as through a window of shared memory (`node_window`), but for the payload of
a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnx import kernels
from mnx.arrays import Array, address_of
from mnx.communicators.chunks import Line, share
from mnx.communicators.node_window import Steps
from mnx.errors import TransportError
from mnx.transports.base import Transport
from mnx.transports.peer_memory import MOST_PIECES, PeerMemory, lend, take_back

BUFFERS = 3
KEPT = 100  # plans of single arrays

# number of an array, offsets in it and in that of the sum, length
Piece = tuple[int, int, int, int]


@dataclass(frozen=True)
class Plan:
    """Which share of which arrays a rank sums, and where the sum is put.

    Attributes
    ----------
    pieces, chunks : array
        As `PeerMemory.sum_share` takes them.
    for_all : bool
        Whether the sum is put into the arrays of all ranks that want it, or of this one only.
    """

    pieces: Array
    chunks: Array
    for_all: bool


def plan(
    shapes: Sequence[tuple[int, ...]], itemsize: int, rank: int, size: int, chunk_bytes: int
) -> Plan:
    """Return a rank's share of arrays of these shapes, which all ranks get summed."""
    line = Line(shapes)
    own = share(line.length, rank, size)
    pieces = [
        (piece.member, piece.start * itemsize, piece.start * itemsize, piece.length * itemsize)
        for piece in line.stretch(own.start, own.stop).pieces(shapes)
    ]
    return _in_chunks(pieces, chunk_bytes, for_all=True)


def plan_of_rows(length: int, itemsize: int, rank: int, chunk_bytes: int) -> Plan:
    """Return a rank's row of an array of as many rows, of which it alone gets the sum."""
    nbytes = length * itemsize
    return _in_chunks([(0, rank * nbytes, 0, nbytes)], chunk_bytes, for_all=False)


def _in_chunks(pieces: Sequence[Piece], chunk_bytes: int, *, for_all: bool) -> Plan:
    chunks: list[list[Piece]] = []
    room = 0
    for piece in _cut(pieces, chunk_bytes):
        if piece[-1] > room or len(chunks[-1]) == MOST_PIECES:
            chunks.append([])
            room = chunk_bytes
        chunks[-1].append(piece)
        room -= piece[-1]
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    ranges = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
    cut = [piece for chunk in chunks for piece in chunk]
    return Plan(np.array(cut, np.int64).reshape(-1, 4), ranges, for_all)


def _cut(pieces: Sequence[Piece], chunk_bytes: int) -> Iterable[Piece]:
    for number, source, target, nbytes in pieces:
        for start in range(0, nbytes, chunk_bytes):
            yield number, source + start, target + start, min(chunk_bytes, nbytes - start)


class StraightSums:
    """Sums lists of arrays over the ranks of one node.

    Parameters
    ----------
    ranks : Transport
    peers : PeerMemory
        Of these ranks.
    chunk_bytes : int
        How much is added at a time, a multiple of 8.
    """

    def __init__(self, ranks: Transport, peers: PeerMemory, chunk_bytes: int) -> None:
        self._ranks, self._peers, self._chunk_bytes = ranks, peers, chunk_bytes
        self._buffers = np.empty(BUFFERS * chunk_bytes, np.uint8)
        self._kept: dict[Any, Plan] = {}

    def plan(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> Plan:
        """Return this rank's share of arrays of these shapes."""
        return plan(shapes, dtype.itemsize, self._ranks.rank, self._ranks.size, self._chunk_bytes)

    def sum_flat(self, sent: Array, into: Array | None, steps: Steps) -> None:
        """Put the sum of flat arrays `into` another, on the ranks that want it. Collective."""
        key = 'flat', sent.size, sent.dtype
        plan = self._kept.get(key) or self._keep(key, self.plan([sent.shape], sent.dtype))
        self.sum(plan, [sent], steps, [] if into is None else [into])

    def sum_rows(self, sent: Array, into: Array, steps: Steps) -> None:
        """Put the sum of the ranks' r-th rows `into` an array of rank r. Collective."""
        key = 'rows', into.size, sent.dtype
        own = into.size, sent.itemsize, self._ranks.rank, self._chunk_bytes
        plan = self._kept.get(key) or self._keep(key, plan_of_rows(*own))
        self.sum(plan, [sent], steps, [into])

    def _keep(self, key: object, plan: Plan) -> Plan:
        if len(self._kept) >= KEPT:
            self._kept.clear()
        self._kept[key] = plan
        return plan

    def sum(
        self,
        plan: Plan,
        arrays: Sequence[Array],
        steps: Steps,
        into: Sequence[Array] | None = None,
    ) -> None:
        """Replace arrays by the sum over the ranks, in place. Collective.

        Or put the sum `into` others; an empty list: this rank wants none. All are of one of
        `packing.DTYPES_IN_C`, and of `steps` there is a divisor only.

        Raises
        ------
        TransportError
            A rank cannot reach another's memory (on all ranks); all arrays are then undefined.
        """
        own = np.zeros((2, len(arrays)), np.int64)
        dtype = arrays[0].dtype
        sources = _located(list(arrays), dtype, own[0])
        targets = sources
        if into is not None:
            targets = _located(list(into), dtype, own[1, : len(into)])
        else:
            own[1] = own[0]
        loan = lend((sources, targets))
        problem = self._meet_after(self._sum, plan, own, dtype, steps.divisor() or 1.0)
        take_back(loan)
        if problem is not None:
            raise problem
        for given, used in zip(arrays if into is None else into, targets, strict=True):
            if given is not used:
                given[...] = used

    def _meet_after(self, work: Callable[..., None], *args: Any) -> TransportError | None:
        """Do this rank's work; return when all have done theirs, with what failed on any rank."""
        failed = np.zeros(1, np.int64)
        problem = None
        try:
            work(*args)
        except TransportError as error:
            failed[0], problem = 1 + self._ranks.rank, error
        self._ranks.find_largest(failed)
        if problem is not None or not failed[0]:
            return problem
        return TransportError(
            f'rank {failed[0] - 1} could not reach the memory of another rank; see its error.'
        )

    def _sum(self, plan: Plan, own: Array, dtype: np.dtype[Any], divisor: float) -> None:
        """Tell the others where this rank's arrays are, learn it of theirs, and sum a share."""
        size = self._ranks.size
        places = np.empty((size, *own.shape), np.int64)
        self._ranks.all_gather(own.reshape(-1), places.reshape(-1), [own.size] * size)
        buffers = self._buffers.view(dtype).reshape(BUFFERS, -1)
        self._peers.sum_share(
            places, plan.pieces, plan.chunks, buffers, divisor, for_all=plan.for_all
        )


def _located(arrays: list[Array], dtype: np.dtype[Any], found: Array) -> list[Array]:
    """Find where arrays begin, or copies whose elements lie one behind the other as C expects."""
    if kernels.addresses(arrays, dtype, found, False):
        return arrays
    plain = [x if _is_plain(x) else np.array(x, order='C', subok=False) for x in arrays]
    found[:] = list(map(address_of, plain))
    return plain


def _is_plain(array: Array) -> bool:
    return bool(array.flags.c_contiguous and array.flags.aligned)
