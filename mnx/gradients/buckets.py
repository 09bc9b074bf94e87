"""Which gradients travel together, in the order in which they become ready. A pure function."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def fill(nbytes: Sequence[int], kinds: Sequence[Hashable], cap: int) -> list[list[int]]:
    """Cut a sequence of gradients into buckets, which keep its order.

    Parameters
    ----------
    nbytes : sequence of int
        The size of each gradient.
    kinds : sequence
        What must be equal in a bucket, such as the dtype.
    cap : int
        Bytes of a bucket, which a single larger gradient may exceed.

    Returns
    -------
    list of list of int
        Positions in the sequence.

    >>> fill([40, 4, 400, 4, 4], 'ffffd', 100)
    [[0, 1], [2], [3], [4]]
    """
    buckets: list[list[int]] = []
    room = 0
    for i, (size, kind) in enumerate(zip(nbytes, kinds, strict=True)):
        if not buckets or size > room or kind != kinds[buckets[-1][0]]:
            buckets.append([])
            room = cap
        buckets[-1].append(i)
        room -= size
    return buckets
