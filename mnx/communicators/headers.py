"""What travels before an array: its dtype and shape, as 16 int64.

word   0                        1      2 ... 15
       dtype + 256 if on a GPU  ndim   shape, padded with zeros
             + 512 if the rows of one array are meant
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnx.arrays import Array, dtype_number, dtype_of, on_gpu, to_place, way_to_empty
from mnx.health.meeting import CARGO, cargo_of

WORDS = CARGO
MIXED = -1  # instead of a dtype: the arrays differ, so each one has a header of its own
_GPU = 256
_OF_ROWS = 512
_KEPT = 1000  # kinds of arrays; a program has some dozens


def header(x: Array) -> Array:
    """Return the header of the contiguous array `x`, shape (16,), int64."""
    return headers([x])[0]


def cargo(x: Array) -> bytes:
    """Return the header of the contiguous array `x` as a meeting carries it."""
    return _cargo(x.dtype, x.shape, on_gpu(x))


def of_rows(x: Array) -> bytes:
    """Return the cargo of an array whose rows are many arrays: that of no single one."""
    return _cargo(x.dtype, x.shape, on_gpu(x), _OF_ROWS)


@functools.lru_cache(_KEPT)
def _cargo(dtype: np.dtype[Any], shape: tuple[int, ...], is_on_gpu: bool, more: int = 0) -> bytes:
    return cargo_of(dtype_number(dtype) + _GPU * is_on_gpu + more, len(shape), *shape)


def headers(xs: Sequence[Array]) -> Array:
    """Return the headers of `xs`, shape (len(xs), 16), int64."""
    table = np.zeros((len(xs), WORDS), np.int64)
    for words, x in zip(table, xs, strict=True):
        words[0] = dtype_number(x.dtype) + _GPU * on_gpu(x)
        words[1] = x.ndim
        words[2 : 2 + x.ndim] = x.shape
    return table


def common(xs: Sequence[Array]) -> bytes:
    """Return the cargo of the header that all arrays have, or of one that says that they differ."""
    dtype, shape = xs[0].dtype, xs[0].shape
    for x in xs:
        if x.shape != shape or x.dtype != dtype:
            return _MIXED
    return cargo(xs[0])


_MIXED = cargo_of(MIXED)


def empty_table(count: int) -> Array:
    """Return room for the headers of `count` arrays, shape (count, 16)."""
    return np.empty((count, WORDS), np.int64)


def allocate(words: Array) -> Array:
    """Return a new array as the header describes it."""
    return _way_to(words.tobytes())()


@functools.lru_cache(_KEPT)
def _way_to(words: bytes) -> Callable[[], Array]:
    number, ndim, *shape = np.frombuffer(words, np.int64).tolist()
    return way_to_empty(_place(number), tuple(shape[:ndim]), dtype_of(number % _GPU))


def nbytes(table: Array) -> list[int]:
    """Return the bytes of each array described by `table`, shape (n, 16)."""
    return [
        dtype_of(number % _GPU).itemsize * math.prod(shape[:ndim])
        for number, ndim, *shape in table.tolist()
    ]


def cut(buffer: Array, table: Array) -> tuple[Array, ...]:
    """Cut the bytes in `buffer` into the arrays described by `table`, as views where possible."""
    found, at = [], 0
    for number, ndim, *shape in table.tolist():
        dtype = dtype_of(number % _GPU)
        size = dtype.itemsize * math.prod(shape[:ndim])
        piece = buffer[at : at + size]
        # an odd number of bytes before it leaves a piece unaligned
        piece = piece.copy() if at % dtype.alignment else piece
        found.append(to_place(piece.view(dtype), _place(number)).reshape(shape[:ndim]))
        at += size
    return tuple(found)


def _place(number: int) -> str:
    return 'gpu' if number >= _GPU else 'cpu'
