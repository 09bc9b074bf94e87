"""The table, and the kernels: compiled for this CPU, where a loop runs the threads; on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from mnx import packing_gpu
from mnx.arrays import Array
from mnx.packing import Packer, plan
from mnx.packing_gpu import DTYPES, KERNELS, Table, supports
from tests.launching import alone

pytestmark = alone

# What CUDA knows and C++ does not. A block has one thread here: it takes all elements in turn.
HOST = """
#include <string.h>
#define __device__ static inline
#define __global__
static struct { int x; } blockIdx, threadIdx, blockDim = {1};
__device__ float half_to_float(unsigned short bits) {
    _Float16 x; memcpy(&x, &bits, 2); return (float)x;
}
__device__ unsigned short float_to_half(float x) {
    _Float16 y = (_Float16)x; unsigned short bits; memcpy(&bits, &y, 2); return bits;
}
__device__ float bits_to_float(unsigned int bits) { float x; memcpy(&x, &bits, 4); return x; }
__device__ unsigned int float_to_bits(float x) { unsigned int b; memcpy(&b, &x, 4); return b; }
"""
LAUNCH = """
#define LAUNCH(name) \\
extern "C" void launch_##name( \\
    int blocks, const unsigned long long* pointers, const int* dtypes, const int* owner, \\
    const long long* start, const long long* offset, const long long* size, \\
    long long stretch, wire* buffer, double scale) { \\
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) \\
        name(pointers, dtypes, owner, start, offset, size, stretch, buffer, scale); \\
}
LAUNCH(pack)
LAUNCH(unpack)
"""

Run = Callable[[str, Sequence[Array], Array, float], None]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), stretch=st.sampled_from([1, 5, 16])
)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_blocks_cover_the_buffer_once(sizes: list[int], stretch: int) -> None:
    table = Table.of_sizes(sizes, stretch)
    seen = []
    for owner, start in zip(table.owner.tolist(), table.start.tolist(), strict=True):
        stop = min(start + stretch, sizes[owner])
        assert start < stop
        seen += [(owner, i, int(table.offset[owner]) + i) for i in range(start, stop)]
    elements = [(owner, i) for owner, size in enumerate(sizes) for i in range(size)]
    assert seen == [(*element, at) for at, element in enumerate(elements)]


def test_positions_do_not_overflow() -> None:
    table = Table.of_sizes([2**31 + 5, 2**32, 3], stretch=2**28)
    assert table.offset.tolist() == [0, 2**31 + 5, 2**31 + 5 + 2**32]
    assert table.start.max() == 2**32 - 2**28
    assert {x.dtype.name for x in (table.start, table.offset, table.size)} == {'int64'}


@pytest.fixture(params=DTYPES)
def wire(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(wire: str, tmp_path: Path) -> Run:
    compiler = shutil.which('c++')
    if compiler is None:
        pytest.skip('no C++ compiler')
    source, library = tmp_path / 'kernels.cc', tmp_path / 'kernels.so'
    source.write_text(HOST + KERNELS + LAUNCH)
    command = [compiler, '-std=c++14', '-O1', '-shared', '-fPIC', f'-DWIRE={DTYPES.index(wire)}']
    built = subprocess.run(
        [*command, str(source), '-o', str(library)], capture_output=True, text=True, check=False
    )
    if '_Float16' in built.stderr:
        pytest.skip('the C++ compiler has no _Float16')
    assert built.returncode == 0, built.stderr
    kernels = ctypes.CDLL(str(library))

    def run(name: str, arrays: Sequence[Array], buffer: Array, scale: float) -> None:
        stretch = 7
        table = Table.of_sizes([x.size for x in arrays], stretch)
        pointers = np.array([x.ctypes.data for x in arrays], np.uint64)
        numbers = np.array([DTYPES.index(x.dtype.name) for x in arrays], np.int32)
        parts = (pointers, numbers, table.owner, table.start, table.offset, table.size)
        addresses = [ctypes.c_void_p(part.ctypes.data) for part in parts]
        getattr(kernels, f'launch_{name}')(
            len(table.owner),
            *addresses,
            ctypes.c_longlong(stretch),
            ctypes.c_void_p(buffer.ctypes.data),
            ctypes.c_double(scale),
        )

    return run


def arrays_of_all_dtypes() -> list[Array]:
    rng = np.random.default_rng(3)
    shapes = [(3, 5), (1,), (40,), (2, 2, 2)]
    return [
        (rng.standard_normal(shape) * 10).astype(dtype_of(name))
        for shape in shapes
        for name in DTYPES
    ]


def rounded(x: Array, wire: str, scale: Callable[[Array], Array]) -> Array:
    """As the kernels: scaled in float64 if that travels, else in float32; rounded once."""
    return scale(x.astype('f8' if wire == 'float64' else 'f4'))


@pytest.mark.parametrize('factor', [1.0, 0.3, 0.0])
def test_pack(run: Run, wire: str, factor: float) -> None:
    arrays = arrays_of_all_dtypes()
    if factor == 0:
        arrays[0][0] = np.nan
    buffer = np.zeros(sum(x.size for x in arrays) + 1, dtype_of(wire))
    buffer[-1] = 77
    run('pack', arrays, buffer, factor)
    expected = [
        rounded(x, wire, lambda v: v * v.dtype.type(factor)).astype(buffer.dtype).ravel()
        for x in arrays
    ]
    if factor == 0:
        expected = [x * 0 for x in map(np.nan_to_num, [e.astype('f4') for e in expected])]
        assert not np.isnan(buffer.astype('f4')).any()
    np.testing.assert_array_equal(buffer[:-1].astype('f8'), np.concatenate(expected).astype('f8'))
    assert buffer[-1] == 77


@pytest.mark.parametrize('divisor', [1.0, 3.0])
def test_unpack(run: Run, wire: str, divisor: float) -> None:
    arrays = arrays_of_all_dtypes()
    size = sum(x.size for x in arrays)
    buffer = (np.random.default_rng(5).standard_normal(size) * 10).astype(dtype_of(wire))
    run('unpack', arrays, buffer, divisor)
    at = 0
    for x in arrays:
        part = buffer[at : at + x.size].reshape(x.shape)
        expected = rounded(part, wire, lambda v: v / v.dtype.type(divisor))
        if x.dtype.itemsize == 2:
            expected = expected.astype('f4')  # of float64, 16 bits are made by way of float32
        np.testing.assert_array_equal(x.astype('f8'), expected.astype(x.dtype).astype('f8'))
        at += x.size


def test_what_is_no_number_stays_none(run: Run, wire: str) -> None:
    special = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0])
    arrays = [special.astype(dtype_of(name)) for name in DTYPES]
    buffer = np.zeros(20, dtype_of(wire))
    run('pack', arrays, buffer, 1.0)
    found = [np.zeros(5, dtype_of(name)) for name in DTYPES]
    run('unpack', found, buffer, 1.0)
    for x in found:
        np.testing.assert_array_equal(x.astype('f8'), special)
        assert np.signbit(x.astype('f8')[3])


def test_dtypes_that_the_kernels_know() -> None:
    f4, i4 = np.zeros(1, 'f4'), np.zeros(1, 'i4')
    assert supports([f4, f4], np.dtype('f2'))
    assert not supports([f4, i4], np.dtype('f4'))
    assert not supports([f4], np.dtype('i4'))


@pytest.mark.gpu
@pytest.mark.parametrize('batched', [False, True])
@pytest.mark.parametrize('travels', ['float16', 'float32', 'float64'])
def test_packing_on_a_gpu(travels: str, batched: bool) -> None:
    """One kernel, or one copy for each array: within a rounding, as on a CPU."""
    import cupy

    rng = np.random.default_rng(0)
    shapes = [(3, 5), (1,), (100, 130), (7,)]
    on_host = [
        np.asarray(rng.standard_normal(s), order=o).astype(d)
        for s, d, o in zip(shapes, ['f2', 'f4', 'f4', 'f8'], 'CCFC', strict=True)
    ]
    arrays = [cupy.asarray(x) for x in on_host]
    (bucket,) = plan(shapes, [np.dtype(travels)] * 4, float('inf'))
    packer = Packer()
    buffer = packer.pack(bucket, arrays, 0.5, batched=batched)
    expected = np.concatenate([x.ravel().astype('f8') for x in on_host]) * 0.5
    rtol = {'float16': 2e-3, 'float32': 1e-6, 'float64': 1e-14}[travels]
    np.testing.assert_allclose(buffer.get(), expected, rtol=rtol)
    packer.unpack(bucket, buffer, arrays, 0.5, batched=batched)
    for x, old in zip(arrays, on_host, strict=True):
        np.testing.assert_allclose(x.get(), old, rtol=max(rtol, 2e-3 if old.dtype == 'f2' else 0))
    assert packing_gpu._module.cache_info().currsize >= batched
