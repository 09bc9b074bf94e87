"""Many arrays <-> few flat buffers.

Sending 161 gradients one by one costs 161 latencies; copying all of them into one buffer costs
the memory traffic twice. So small arrays are packed and large ones travel where they are::

    arrays    W1 (large)   b1    W2 (large)   b2    b3
    buckets   [W1]         [b1               b2    b3]   [W2]
              in place      packed in one buffer          in place

`plan` decides, from sizes alone, so that all ranks decide alike.
"""

from __future__ import annotations

import collections
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mnx import kernels
from mnx.arrays import Array, empty_like, flat, module_of, on_gpu
from mnx.packing_gpu import BatchedCopy, supports

DTYPES_IN_C = {np.dtype(np.float32), np.dtype(np.float64)}  # that loops in C can add up


@dataclass(frozen=True, eq=False)
class Bucket:
    """Arrays that travel together.

    Attributes
    ----------
    members : tuple of int
        Their positions in the list of arrays, ascending.
    shapes : tuple of tuple of int
        Their shapes.
    wire : numpy.dtype
        The dtype in which they travel.
    """

    members: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    wire: np.dtype[Any]

    def of(self, arrays: list[Array]) -> list[Array]:
        """Return the members."""
        everything = len(self.members) == len(arrays)
        return arrays if everything else [arrays[i] for i in self.members]


def plan(
    shapes: Sequence[tuple[int, ...]], wires: Sequence[np.dtype[Any]], pack_below: float
) -> list[Bucket]:
    """Decide which arrays travel together.

    Parameters
    ----------
    shapes : sequence of tuple of int
        The shape of each array.
    wires : sequence of numpy.dtype
        The dtype in which each array travels; only equal ones share a buffer.
    pack_below : float
        Arrays of at least so many bytes travel alone: 0 packs nothing, inf packs everything.

    Returns
    -------
    list of Bucket
        In the order of their first members; empty arrays are left out.

    >>> f = np.dtype('f4')
    >>> [b.members for b in plan([(1000,), (10,), (1000,), (4, 5)], [f, f, f, f], 400)]
    [(0,), (1, 3), (2,)]
    """
    buckets: dict[object, list[int]] = {}
    for i, (shape, wire) in enumerate(zip(shapes, wires, strict=True)):
        if 0 not in shape:
            alone = math.prod(shape) * wire.itemsize >= pack_below
            buckets.setdefault(i if alone else wire, []).append(i)
    return [
        Bucket(tuple(members), tuple(shapes[i] for i in members), wires[members[0]])
        for members in buckets.values()
    ]


class Row:
    """Arrays of some shapes that lie one behind the other in a flat buffer."""

    def __init__(self, buffer: Array, shapes: Sequence[tuple[int, ...]]) -> None:
        self.buffer = buffer
        self._shapes = shapes
        self._views: list[Array] | None = None  # kept: cutting costs as much as sending

    def copy_to(self, arrays: list[Array]) -> None:
        """Copy them into these arrays, which may have another layout and dtype."""
        if kernels.scatter(self.buffer, arrays):
            return
        if self._views is None:
            self._views = shaped_views(self.buffer, self._shapes)
        copy_each(self._views, arrays)


class Packer:
    """Fills and empties the buffers of buckets, and keeps them for the next call.

    A fresh buffer of megabytes would cost its page faults anew at every step.
    """

    def __init__(self) -> None:
        self._batched: WeakKeyDictionary[Bucket, BatchedCopy] = WeakKeyDictionary()
        self._spare: dict[tuple[Any, bool], Array] = {}
        self._rows: WeakKeyDictionary[Bucket, Row] = WeakKeyDictionary()

    def pack(
        self,
        bucket: Bucket,
        arrays: list[Array],
        factor: float = 1.0,
        *,
        batched: bool = False,
    ) -> Array:
        """Return the bucket's members, times `factor`, as one flat buffer in its wire dtype.

        A single contiguous array of that dtype is its own buffer: nothing is copied. `batched`:
        on a GPU, by one kernel, which does not keep the bits of a NaN.
        """
        members = bucket.of(arrays)
        if in_place(bucket, members):
            buffer = flat(members[0])
        else:
            buffer = self._row(bucket, members[0]).buffer
            if batched and _by_kernel(bucket, members):
                self._kernel(bucket).pack(members, buffer, factor)
                return buffer
            concatenate(members, buffer)
        multiply(buffer, factor)
        return buffer

    def unpack(
        self,
        bucket: Bucket,
        buffer: Array,
        arrays: list[Array],
        divisor: float = 1.0,
        *,
        batched: bool = False,
    ) -> None:
        """Copy the buffer, divided by `divisor`, into the members, of any layout and dtype."""
        members = bucket.of(arrays)
        alone = in_place(bucket, members)
        if batched and not alone and _by_kernel(bucket, members):
            self._kernel(bucket).unpack(buffer, members, divisor)
            return
        divide(buffer, divisor)
        if alone:
            return
        self._rows[bucket].copy_to(members)

    def _kernel(self, bucket: Bucket) -> BatchedCopy:
        if bucket not in self._batched:
            self._batched[bucket] = BatchedCopy([math.prod(shape) for shape in bucket.shapes])
        return self._batched[bucket]

    def _row(self, bucket: Bucket, like: Array) -> Row:
        """Return the bucket's flat buffer, shaped like the members."""
        size = sum(map(math.prod, bucket.shapes))
        spare = self._spare_buffer(like, size, bucket.wire)
        known = self._rows.get(bucket)
        if known is None or known.buffer.base is not spare:
            self._rows[bucket] = known = Row(spare[:size], bucket.shapes)
        return known

    def _spare_buffer(self, like: Array, size: int, dtype: np.dtype[Any]) -> Array:
        key = dtype, on_gpu(like)
        if key not in self._spare or self._spare[key].size < size:
            self._spare[key] = empty_like(like, (size,), dtype)
            self._rows.clear()  # they would keep the old buffer alive
        return self._spare[key]


def _by_kernel(bucket: Bucket, members: Sequence[Array]) -> bool:
    return on_gpu(members[0]) and supports(members, bucket.wire)


def multiply(part: Array, factor: float) -> None:
    """Multiply an array by a rank's weight, in place."""
    if factor == 0.0:
        part.fill(0)  # not a product: nobody's NaN may come in with weight 0
    elif factor != 1.0:
        part *= factor


def divide(total: Array, divisor: float) -> None:
    """Divide an array, in place."""
    if divisor == 1.0:
        return
    if math.frexp(divisor)[0] == 0.5:
        total *= 1 / divisor  # a power of two: the same bits, ten times as fast
    else:
        total /= divisor  # rounded once, unlike a product with 1 / divisor


def concatenate(arrays: list[Array], out: Array) -> Array:
    """Fill the flat `out` with all elements of `arrays`, converted to its dtype."""
    if kernels.gather(arrays, out):
        return out
    if len(arrays) == 1:
        out[...] = arrays[0].reshape(-1)
    else:
        module_of(out).concatenate(arrays, axis=None, out=out, casting='unsafe')
    return out


def add_up(
    parts: list[Array], total: Array, divisor: float = 1.0, twin: Array | None = None
) -> None:
    """Add up flat arrays from left to right, and divide: into `total`, and into `twin`, too.

    `total` may be one of the first two parts; `twin` any of them, or none.
    """
    if kernels.add(parts, total, divisor, twin):
        return
    if len(parts) == 1:
        total[...] = parts[0]
    else:
        np.add(parts[0], parts[1], out=total)
    for part in parts[2:]:
        np.add(total, part, out=total)
    divide(total, divisor)
    if twin is not None:
        twin[...] = total


def copy_each(sources: Sequence[Array], targets: Sequence[Array]) -> None:
    """Copy every source into the target beside it, which may have another layout and dtype."""
    # a loop in C: for 400 small arrays the statement `target[...] = source` takes a fifth longer
    copies = map(operator.setitem, targets, itertools.repeat(...), sources)
    collections.deque(copies, maxlen=0)


def shaped_views(buffer: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Cut a flat buffer into views of these shapes, one behind the other."""
    stops = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    return [
        buffer[stop - math.prod(shape) : stop].reshape(shape)
        for stop, shape in zip(stops, shapes, strict=True)
    ]


def in_place(bucket: Bucket, members: Sequence[Array]) -> bool:
    """Tell whether the bucket's only member can serve as its own buffer."""
    return (
        len(members) == 1
        and members[0].dtype == bucket.wire
        and bool(members[0].flags.c_contiguous)
    )
