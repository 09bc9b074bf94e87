"""The rest of an epoch, dealt out to another number of ranks: pure functions of positions.

Twelve examples on two ranks, half of them seen, go on with three ranks::

    rank 0   .  1  2  3  .  .                    rank 0   .  1  2  3     sees  2 3
    rank 1   .  7  8  9  .  .         ──►        rank 1   .  .  .  7     sees  7, and 1 of rank 0
                                                 rank 2   8  9  .  .     sees  8 9

Each rank gets as many as each other, so that the ranks' epochs end together: of what it holds
first, and then of what others hold too much of, which travels to it. If the number does not
divide, a few ranks see an example again that has been seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """Which positions a rank holds, and how many of them, from the first, it owns."""

    positions: range
    n_owned: int

    @property
    def held(self) -> NDArray[np.int64]:
        """The positions as an array."""
        return np.asarray(self.positions, np.int64)

    @property
    def owned(self) -> range:
        """The positions that belong to this rank alone."""
        return self.positions[: self.n_owned]


@dataclass(frozen=True)
class Hand:
    """What a rank has to see in the rest of the epoch, as positions in the whole.

    Attributes
    ----------
    own : array of int
        Of its own part; the last `n_again` of them have been seen already.
    foreign : array of int
        Of the parts of others.
    n_again : int
    """

    own: NDArray[np.int64]
    foreign: NDArray[np.int64]
    n_again: int


def responsible(
    part: Part, foreign: NDArray[np.int64], rest: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the positions that a rank still has to see, less those that another one owns.

    Parameters
    ----------
    part : Part
    foreign : array of int
        Positions of the examples behind the rank's own, if it has been dealt any.
    rest : array of int
        What is left of the rank's order: numbers of its own examples, then of the foreign ones.

    >>> responsible(Part(range(10, 14), 3), np.array([99]), np.array([3, 4, 1]))
    array([11, 99])
    """
    table = np.concatenate([part.held, foreign])
    counts = (rest < part.n_owned) | (rest >= len(part.positions))
    found: NDArray[np.int64] = np.unique(table[rest[counts]])
    return found


def deal(left: NDArray[np.int64], parts: Sequence[Part]) -> list[Hand]:
    """Deal the positions that are left out to the ranks that hold `parts`.

    >>> hands = deal(np.array([1, 4, 6, 7]), [Part(range(4), 4), Part(range(4, 8), 4)])
    >>> [(hand.own.tolist(), hand.foreign.tolist()) for hand in hands]
    [([1], [4]), ([6, 7], [])]
    """
    shares = [min(-(-len(left) // len(parts)), len(part.positions)) for part in parts]
    mine = [left[(left >= p.owned.start) & (left < p.owned.stop)] for p in parts]
    too_many = [max(0, len(own) - share) for own, share in zip(mine, shares, strict=True)]
    spare = np.concatenate([own[:n] for own, n in zip(mine, too_many, strict=True)])
    hands = []
    for part, own, n, share in zip(parts, mine, too_many, shares, strict=True):
        own = own[n:]
        foreign, spare = np.split(spare, [min(share - len(own), len(spare))])
        again = np.setdiff1d(part.held, own)[: share - len(own) - len(foreign)]
        hands.append(Hand(np.concatenate([own, again]), foreign, len(again)))
    return hands


def order_of(hand: Hand, part: Part, shuffle: np.random.Generator | None) -> NDArray[np.int64]:
    """Return an order of the rank's examples at whose end stands what is still to be seen.

    As long as the part; the k-th foreign example has the number ``len(part) + k``.

    >>> order_of(Hand(np.array([13]), np.array([99]), 0), Part(range(10, 14), 4), None)
    array([0, 1, 3, 4])
    """
    n, start = len(part.positions), part.positions.start
    rest = np.concatenate([hand.own - start, np.arange(n, n + len(hand.foreign))])
    seen = np.setdiff1d(np.arange(n), rest)[: n - len(rest)]
    if shuffle is not None:
        rest = shuffle.permutation(rest)
    return np.concatenate([seen, rest])
