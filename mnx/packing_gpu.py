"""All arrays of a bucket <-> one buffer by one kernel: copied, converted and scaled on the way.

161 gradients by 161 copies cost 161 launches, more than the copying itself. Here each block of
threads has one stretch of one array, found in a table::

    arrays    [ a a a a a | a a ]   [ b b b ]        stretches of 5, for example
    block          0         1          2
    owner          0         0          1            which array
    start          0         5          0            where in it
    offset      0 (of a)            7 (of b)         where the array starts in the buffer

The table depends on sizes alone and is kept. Only the arrays' addresses are new in each call.
All positions are 64 bits wide.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnx.arrays import Array

DTYPES = ('float16', 'bfloat16', 'float32', 'float64')  # the position is the number in the kernel
STRETCH = 4096
THREADS = 256


@dataclass(frozen=True)
class Table:
    """Which block of threads does what.

    Attributes
    ----------
    owner : array of int32, shape (blocks,)
        The array that a block works on.
    start : array of int64, shape (blocks,)
        Its first element there.
    offset : array of int64, shape (arrays,)
        Where each array starts in the buffer.
    size : array of int64, shape (arrays,)
        The number of its elements.
    """

    owner: Array
    start: Array
    offset: Array
    size: Array

    @classmethod
    def of_sizes(cls, sizes: Sequence[int], stretch: int = STRETCH) -> Table:
        """Return the table for arrays of these sizes.

        >>> table = Table.of_sizes([7, 3], stretch=5)
        >>> table.owner.tolist(), table.start.tolist(), table.offset.tolist()
        ([0, 0, 1], [0, 5, 0], [0, 7])
        """
        size = np.array(sizes, np.int64)
        blocks = -(-size // stretch)
        owner = np.repeat(np.arange(len(size), dtype=np.int32), blocks)
        first = np.cumsum(blocks) - blocks
        start = (np.arange(len(owner), dtype=np.int64) - first[owner]) * stretch
        return cls(owner, start, np.cumsum(size) - size, size)


# How two bytes become a float. A test puts the C++ of a CPU in its place.
HALF = """
__device__ float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ float bits_to_float(unsigned int bits) { return __uint_as_float(bits); }
__device__ unsigned int float_to_bits(float x) { return __float_as_uint(x); }
"""

# Numbers are scaled in float32, or float64 if that is what travels: as on a CPU.
KERNELS = """
struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

#if WIRE == 0
typedef float16 wire; typedef float real;
#elif WIRE == 1
typedef bfloat16 wire; typedef float real;
#elif WIRE == 2
typedef float wire; typedef float real;
#else
typedef double wire; typedef double real;
#endif

__device__ real load(float16 x) { return half_to_float(x.bits); }
__device__ real load(bfloat16 x) { return bits_to_float((unsigned int)x.bits << 16); }
__device__ real load(float x) { return (real)x; }
__device__ real load(double x) { return (real)x; }

__device__ void store(float16* to, real x) { to->bits = float_to_half((float)x); }
__device__ void store(bfloat16* to, real x) {  // round to nearest, ties to even
    unsigned int bits = float_to_bits((float)x);
    to->bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
__device__ void store(float* to, real x) { *to = (float)x; }
__device__ void store(double* to, real x) { *to = (double)x; }

template <typename T>
__device__ void pack_one(const T* from, wire* to, long long at, long long end, real factor) {
    for (at += threadIdx.x; at < end; at += blockDim.x)
        store(to + at, factor == 0 ? 0 : load(from[at]) * factor);
}

template <typename T>
__device__ void unpack_one(const wire* from, T* to, long long at, long long end, real divisor) {
    for (at += threadIdx.x; at < end; at += blockDim.x)
        store(to + at, load(from[at]) / divisor);
}

#define KERNEL(name, one, scale) \\
extern "C" __global__ void name( \\
    const unsigned long long* pointers, const int* dtypes, const int* owner, \\
    const long long* start, const long long* offset, const long long* size, \\
    long long stretch, wire* buffer, double scale) { \\
    int i = owner[blockIdx.x]; \\
    long long at = start[blockIdx.x]; \\
    long long end = at + stretch < size[i] ? at + stretch : size[i]; \\
    wire* part = buffer + offset[i]; \\
    switch (dtypes[i]) { \\
        case 0: one(float16) break; \\
        case 1: one(bfloat16) break; \\
        case 2: one(float) break; \\
        case 3: one(double) break; \\
    } \\
}
#define PACK(T) pack_one((const T*)pointers[i], part, at, end, (real)factor);
#define UNPACK(T) unpack_one(part, (T*)pointers[i], at, end, (real)divisor);

KERNEL(pack, PACK, factor)
KERNEL(unpack, UNPACK, divisor)
"""


@functools.cache
def _module(wire: str) -> Any:
    import cupy

    options = ('-std=c++14', f'-DWIRE={DTYPES.index(wire)}')
    return cupy.RawModule(code=HALF + KERNELS, options=options)


def supports(arrays: Sequence[Array], wire: np.dtype[Any]) -> bool:
    """Tell whether the kernels know all these dtypes."""
    return wire.name in DTYPES and all(x.dtype.name in DTYPES for x in arrays)


class BatchedCopy:
    """Packs and unpacks arrays of given sizes on a GPU.

    Parameters
    ----------
    sizes : sequence of int
        Elements of each array; none is 0.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        import cupy

        self._cupy = cupy
        table = Table.of_sizes(sizes)
        self._blocks = len(table.owner)
        parts = (table.owner, table.start, table.offset, table.size)
        self._table = [cupy.asarray(part) for part in parts]
        self._known: list[tuple[int, int]] = []
        self._addresses: list[Array] = []

    def pack(self, arrays: Sequence[Array], buffer: Array, factor: float) -> None:
        """Fill `buffer` with the arrays times `factor`; with zeros if that is 0."""
        contiguous = [self._cupy.ascontiguousarray(x) for x in arrays]
        self._run('pack', contiguous, buffer, factor)

    def unpack(self, buffer: Array, arrays: Sequence[Array], divisor: float) -> None:
        """Fill the arrays from the buffer, divided by `divisor`."""
        targets = [
            x if x.flags.c_contiguous else self._cupy.empty(x.shape, x.dtype) for x in arrays
        ]
        self._run('unpack', targets, buffer, divisor)
        for x, target in zip(arrays, targets, strict=True):
            if x is not target:
                x[...] = target

    def _run(self, name: str, arrays: Sequence[Array], buffer: Array, scale: float) -> None:
        kernel = _module(buffer.dtype.name).get_function(name)
        given = (np.int64(STRETCH), buffer, np.float64(scale))
        addresses = self._placed(arrays)
        kernel((self._blocks,), (THREADS,), (*addresses, *self._table, *given))

    def _placed(self, arrays: Sequence[Array]) -> list[Array]:
        """Return addresses and dtypes on the GPU; gradients often stay where they were."""
        places = [(int(x.data.ptr), DTYPES.index(x.dtype.name)) for x in arrays]
        if places != self._known:
            pointers, numbers = zip(*places, strict=True)
            self._addresses = [
                self._cupy.asarray(np.array(pointers, np.uint64)),
                self._cupy.asarray(np.array(numbers, np.int32)),
            ]
            self._known = places
        return self._addresses
