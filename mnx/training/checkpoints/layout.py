"""Which rank writes what: equal values once in each folder. Pure functions.

              common to all    first half    second half    position in the data
    rank 0         a                b                                c          writes a b   c
    rank 1         a                                d                e          writes     d e
    rank 2         a                b                                f          writes       f
    rank 3         a                                d                g          writes       g

Only the differences from rank 0's values are compared, and those are few where the ranks train
the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Digests: TypeAlias = 'Mapping[str, bytes | None]'  # None: the rank has no such value


def difference(roots: Digests, mine: Digests) -> dict[str, bytes | None]:
    """Return what this rank has in another way than rank 0.

    >>> difference({'W': b'1', 'log': b'2'}, {'W': b'1', 'order': b'3'})
    {'order': b'3', 'log': None}
    """
    different = {key: digest for key, digest in mine.items() if roots.get(key) != digest}
    return different | {key: None for key in roots if key not in mine}


def holders(
    roots: Digests, differences: Sequence[Digests], folders: Sequence[int], rank: int
) -> dict[str, int]:
    """Return for each of a rank's values the rank in whose file it is.

    Parameters
    ----------
    roots : mapping
        Checksums of rank 0's values.
    differences : sequence of mappings
        What `difference` returned on each rank.
    folders : sequence of int
        For each rank the first rank that sees the same folder.
    rank : int

    >>> two = [{}, {'c': b'5'}]
    >>> holders({'a': b'1', 'c': b'2'}, two, [0, 0], rank=1)  # one folder
    {'a': 0, 'c': 1}
    >>> holders({'a': b'1', 'c': b'2'}, two, [0, 1], rank=1)  # each its own
    {'a': 1, 'c': 1}
    """
    found = dict.fromkeys(roots, folders[rank])
    for key in disputed(differences):
        mine = differences[rank].get(key, roots.get(key))
        found.pop(key, None)
        if mine is not None:
            found[key] = next(
                other
                for other, theirs in enumerate(differences)
                if folders[other] == folders[rank] and theirs.get(key, roots.get(key)) == mine
            )
    return found


def disputed(differences: Sequence[Digests]) -> list[str]:
    """Return the names of the values that not all ranks have alike, sorted."""
    return sorted({key for different in differences for key in different})
