"""Many arrays <-> few flat buffers.

Sending 161 gradients one by one costs 161 latencies; copying all of them into one buffer costs
the memory traffic twice. So small arrays are packed and large ones travel where they are::

    arrays    W1 (large)   b1    W2 (large)   b2    b3
    buckets   [W1]         [b1               b2    b3]   [W2]
              in place      packed in one buffer          in place

`plan` decides, from sizes alone, so that all ranks decide alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnx.arrays import Array, empty_like, flat, on_gpu


@dataclass(frozen=True)
class Bucket:
    """Arrays that travel together: their positions in the list, and the dtype they travel in."""

    members: tuple[int, ...]
    wire: np.dtype[Any]


def plan(sizes: Sequence[int], wires: Sequence[np.dtype[Any]], pack_below: float) -> list[Bucket]:
    """Decide which arrays travel together.

    Parameters
    ----------
    sizes : sequence of int
        Number of elements of each array.
    wires : sequence of numpy.dtype
        The dtype in which each array travels; only equal ones share a buffer.
    pack_below : float
        Arrays of at least so many bytes travel alone: 0 packs nothing, inf packs everything.

    Returns
    -------
    list of Bucket
        In the order of their first members; empty arrays are left out.

    >>> f = np.dtype('f4')
    >>> [b.members for b in plan([1000, 10, 1000, 20], [f, f, f, f], 400)]
    [(0,), (1, 3), (2,)]
    """
    buckets: dict[object, list[int]] = {}
    for i, (size, wire) in enumerate(zip(sizes, wires, strict=True)):
        if size:
            alone = size * wire.itemsize >= pack_below
            buckets.setdefault(i if alone else wire, []).append(i)
    return [Bucket(tuple(members), wires[members[0]]) for members in buckets.values()]


class Packer:
    """Fills and empties the buffers of buckets; keeps one buffer a dtype from call to call.

    A fresh buffer of megabytes would cost its page faults anew at every step.
    """

    def __init__(self) -> None:
        self._spare: dict[tuple[Any, bool], Array] = {}

    def pack(self, bucket: Bucket, arrays: Sequence[Array]) -> Array:
        """Return the bucket's members as one flat buffer in its wire dtype.

        A single contiguous array of that dtype is its own buffer: nothing is copied.
        """
        members = [arrays[i] for i in bucket.members]
        if in_place(bucket, members):
            return flat(members[0])
        buffer = self._buffer(members[0], sum(m.size for m in members), bucket.wire)
        at = 0
        for member in members:
            buffer[at : at + member.size].reshape(member.shape)[...] = member
            at += member.size
        return buffer

    def unpack(self, bucket: Bucket, buffer: Array, arrays: Sequence[Array]) -> None:
        """Copy the buffer back into the members, whatever their layout and dtype."""
        members = [arrays[i] for i in bucket.members]
        if in_place(bucket, members):
            return
        at = 0
        for member in members:
            member[...] = buffer[at : at + member.size].reshape(member.shape)
            at += member.size

    def _buffer(self, like: Array, size: int, dtype: np.dtype[Any]) -> Array:
        key = dtype, on_gpu(like)
        if key not in self._spare or self._spare[key].size < size:
            self._spare[key] = empty_like(like, (size,), dtype)
        return self._spare[key][:size]


def in_place(bucket: Bucket, members: Sequence[Array]) -> bool:
    """Tell whether the bucket's only member can serve as its own buffer."""
    return (
        len(members) == 1
        and members[0].dtype == bucket.wire
        and bool(members[0].flags.c_contiguous)
    )
