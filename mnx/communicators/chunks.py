"""Cutting a list of arrays into stretches of equal length, across the borders between arrays.

    arrays      |     W1      | b1 |        W2        | b2 |
    stretches   |   0   |   1   |   2   |   3   |   4   |

A stretch is the end of one array, some whole ones, and the beginning of another. Pure functions
of the arrays' sizes, tested without MPI.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mnx.arrays import Array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """The elements `start` to `stop` of the flat array number `member`."""

    member: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """The number of elements."""
        return self.stop - self.start

    def of(self, arrays: Sequence[Array]) -> Array:
        """Return a view of the elements; the array must be contiguous."""
        return arrays[self.member].reshape(-1)[self.start : self.stop]


@dataclass(frozen=True)
class Stretch:
    """Consecutive elements of a list of arrays.

    Attributes
    ----------
    length : int
        Number of elements.
    head : Piece or None
        The end, or the middle, of an array.
    whole : slice
        The arrays that lie in it from beginning to end.
    tail : Piece or None
        The beginning of an array.
    """

    length: int
    head: Piece | None
    whole: slice
    tail: Piece | None

    def of(self, arrays: Sequence[Array]) -> list[Array]:
        """Return views that together hold the elements, whole arrays as they are."""
        found = [] if self.head is None else [self.head.of(arrays)]
        found += arrays[self.whole]
        return found if self.tail is None else [*found, self.tail.of(arrays)]

    def cut(self) -> list[int]:
        """Return which arrays are cut."""
        return [piece.member for piece in (self.head, self.tail) if piece is not None]

    def pieces(self, shapes: Sequence[Shape]) -> list[Piece]:
        """Return the elements of each array, of arrays of these shapes."""
        whole = range(*self.whole.indices(len(shapes)))
        found = [self.head, *(Piece(i, 0, math.prod(shapes[i])) for i in whole), self.tail]
        return [piece for piece in found if piece is not None and piece.length > 0]

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes of those views, for arrays of these shapes."""
        head = [] if self.head is None else [(self.head.stop - self.head.start,)]
        tail = [] if self.tail is None else [(self.tail.stop - self.tail.start,)]
        return [*head, *shapes[self.whole], *tail]


class Line:
    """Arrays of these shapes, one behind the other."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = list(shapes)
        self._borders = [0, *itertools.accumulate(math.prod(shape) for shape in shapes)]

    @property
    def length(self) -> int:
        """The number of elements of all arrays."""
        return self._borders[-1]

    @property
    def borders(self) -> list[int]:
        """At which element each array begins, and the last one ends."""
        return self._borders

    def stretch(self, start: int, stop: int) -> Stretch:
        """Return the elements from `start` to `stop`.

        >>> line = Line([(5,), (2,), (4,)])
        >>> line.stretch(4, 8)
        ... # doctest: +NORMALIZE_WHITESPACE
        Stretch(length=4, head=Piece(member=0, start=4, stop=5), whole=slice(1, 2, None),
                tail=Piece(member=2, start=0, stop=1))
        """
        borders = self._borders
        first = bisect.bisect_left(borders, start)  # the first array that begins here
        last = bisect.bisect_right(borders, stop) - 1  # the array in which it stops
        if first > last:  # within one array
            return Stretch(stop - start, self._piece(last, start, stop), slice(0, 0), None)
        head = self._piece(first - 1, start, borders[first]) if start < borders[first] else None
        tail = self._piece(last, borders[last], stop) if borders[last] < stop else None
        return Stretch(stop - start, head, slice(first, last), tail)

    def _piece(self, member: int, start: int, stop: int) -> Piece:
        return Piece(member, start - self._borders[member], stop - self._borders[member])


def share(length: int, owner: int, owners: int) -> slice:
    """Return the part of a chunk that one of `owners` sums; none for an owner beyond them.

    >>> [share(10, r, 3) for r in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None), slice(10, 10, None)]
    """
    return slice(length * min(owner, owners) // owners, length * min(owner + 1, owners) // owners)
