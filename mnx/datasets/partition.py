"""Which examples belong to which rank: pure functions of numbers.

Ten examples on four ranks::

    force_equal_length=True             force_equal_length=False
    rank 0   0 1 2                      rank 0   0 1 2
    rank 1       2 3 4                  rank 1         3 4 5
    rank 2             5 6 7            rank 2               6 7
    rank 3                 7 8 9        rank 3                   8 9

Parts of equal length may share an example with the next rank. It is *owned* by the next rank, so
that each example is owned exactly once: rank 0 above holds 0 1 2 and owns 0 1.
"""

from __future__ import annotations


def part_of(n: int, rank: int, size: int, *, force_equal_length: bool = True) -> range:
    """Return the positions that `rank` holds out of ``range(n)``.

    Parameters
    ----------
    n : int
        Number of all examples.
    rank, size : int
        Which of how many parts.
    force_equal_length : bool
        Give every rank ``ceil(n / size)`` positions, a few of them twice; else give the first
        ``n % size`` ranks one more than the others, and none twice.
    """
    if force_equal_length:
        start = n * rank // size
        return range(start, start + -(-n // size))
    shorter, longer = divmod(n, size)
    start = rank * shorter + min(rank, longer)
    return range(start, start + shorter + (rank < longer))


def owned_length(n: int, rank: int, size: int, *, force_equal_length: bool = True) -> int:
    """Return how many of its positions `rank` owns: the first ones of its part."""
    part = part_of(n, rank, size, force_equal_length=force_equal_length)
    if not force_equal_length or rank == size - 1:
        return len(part)
    following = part_of(n, rank + 1, size)
    return following.start - part.start
