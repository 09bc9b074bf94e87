"""What travels before an array: its dtype and shape, as 16 int64.

word   0                        1      2 ... 15
       dtype + 256 if on a GPU  ndim   shape, padded with zeros
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mnx.arrays import Array, dtype_number, dtype_of, empty_at, on_gpu, to_place
from mnx.health.meeting import CARGO

WORDS = CARGO
MIXED = -1  # instead of a dtype: the arrays differ, so each one has a header of its own
_GPU = 256


def header(x: Array) -> Array:
    """Return the header of the contiguous array `x`, shape (16,), int64."""
    words = np.zeros(WORDS, np.int64)
    _describe(x, words)
    return words


def _describe(x: Array, words: Array) -> None:
    words[0] = dtype_number(x.dtype) + _GPU * on_gpu(x)
    words[1] = x.ndim
    words[2 : 2 + x.ndim] = x.shape


def headers(xs: Sequence[Array]) -> Array:
    """Return the headers of `xs`, shape (len(xs), 16), int64."""
    table = np.zeros((len(xs), WORDS), np.int64)
    for words, x in zip(table, xs, strict=True):
        _describe(x, words)
    return table


def common(xs: Sequence[Array]) -> Array:
    """Return the header that all arrays have, or one that says that they differ."""
    words = header(xs[0])
    if any(x.shape != xs[0].shape or x.dtype != xs[0].dtype for x in xs):
        words[0] = MIXED
    return words


def empty_table(count: int) -> Array:
    """Return room for the headers of `count` arrays, shape (count, 16)."""
    return np.empty((count, WORDS), np.int64)


def allocate(words: Array) -> Array:
    """Return a new array as the header describes it."""
    number, ndim, *shape = words.tolist()
    return empty_at(_place(number), shape[:ndim], dtype_of(number % _GPU))


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
