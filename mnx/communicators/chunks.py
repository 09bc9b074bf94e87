"""Cutting a list of arrays into chunks of equal length, across the borders between arrays.

    arrays   |     W1      | b1 |        W2        | b2 |
    chunks   |   0   |   1   |   2   |   3   |   4   |

A chunk is a list of spans, each a stretch of one array. A pure function, tested without MPI.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mnx.arrays import Array


@dataclass(frozen=True)
class Span:
    """The elements `start` to `stop` of the flat array number `member`; `whole` if that is all."""

    member: int
    start: int
    stop: int
    whole: bool

    def of(self, arrays: Sequence[Array]) -> Array:
        """Return the stretch as a view: the array itself if it is whole."""
        array = arrays[self.member]
        return array if self.whole else array.reshape(-1)[self.start : self.stop]


def cut(shapes: Sequence[tuple[int, ...]], length: int) -> list[list[Span]]:
    """Cut arrays of these shapes into chunks of `length` elements; the last may be shorter.

    >>> [[(s.member, s.start, s.stop) for s in chunk] for chunk in cut([(5,), (2,), (4,)], 4)]
    [[(0, 0, 4)], [(0, 4, 5), (1, 0, 2), (2, 0, 1)], [(2, 1, 4)]]
    """
    chunks: list[list[Span]] = []
    room = 0
    for member, shape in enumerate(shapes):
        for start, stop in _stretches(math.prod(shape), room, length):
            if room == 0:
                chunks.append([])
                room = length
            chunks[-1].append(Span(member, start, stop, stop - start == math.prod(shape)))
            room -= stop - start
    return chunks


def _stretches(size: int, room: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the borders of an array's stretches: first what fits into the room left."""
    start = 0
    while start < size:
        stop = min(size, start + (room or length))
        yield start, stop
        start, room = stop, 0


def share(length: int, owner: int, owners: int) -> slice:
    """Return the part of a chunk that one of `owners` reduces; none for an owner beyond them.

    >>> [share(10, r, 3) for r in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None), slice(0, 0, None)]
    """
    if owner >= owners:
        return slice(0, 0)
    return slice(length * owner // owners, length * (owner + 1) // owners)
