"""A header says enough to make an equal array; bytes are cut where the headers say."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mnx.arrays import DTYPE_NAMES, MAX_NDIM, as_bytes, dtype_of
from mnx.communicators.headers import (
    MIXED,
    WORDS,
    allocate,
    cargo,
    common,
    cut,
    header,
    headers,
    nbytes,
    of_rows,
)

derandomized = settings(derandomize=True, max_examples=80, deadline=None)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype = dtype_of(draw(st.integers(0, len(DTYPE_NAMES) - 1)))
    shape = draw(shapes)
    return (np.arange(int(np.prod(shape))) + 1).reshape(shape).astype(dtype)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tolist()) == (b.dtype, b.shape, b.tolist())


@pytest.mark.parametrize('number', range(len(DTYPE_NAMES)), ids=DTYPE_NAMES)
@pytest.mark.parametrize('shape', [(), (0,), (3,), (2, 0, 5), (1,) * MAX_NDIM], ids=str)
def test_an_array_like_the_one_described(number: int, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, dtype_of(number))
    words = header(x)
    assert (words.shape, words.dtype) == ((WORDS,), np.int64)
    made = allocate(words)
    assert (made.shape, made.dtype, made.nbytes) == (x.shape, x.dtype, x.nbytes)
    assert made.flags.c_contiguous


@given(st.lists(arrays(), min_size=2, max_size=4))
@derandomized
def test_what_a_meeting_carries_is_the_header(xs: list[np.ndarray]) -> None:
    for x in xs:
        words = np.frombuffer(cargo(x), np.int64)
        np.testing.assert_array_equal(words, np.concatenate([header(x), -header(x)]))
    are_alike = len({(x.dtype, x.shape) for x in xs}) == 1
    assert (common(xs) == cargo(xs[0])) == are_alike
    assert np.frombuffer(common(xs), np.int64)[0] == (header(xs[0])[0] if are_alike else MIXED)
    assert not {of_rows(x) for x in xs} & {cargo(x) for x in xs}


def test_the_largest_lengths_fit() -> None:
    x = np.broadcast_to(np.int8(0), (2**40, 0, 2**20))
    assert allocate(header(x)).shape == x.shape
    table = header(np.broadcast_to(np.float32(0), (2**20, 2**20)))[None]
    assert nbytes(table) == [2**42]


@given(st.lists(arrays(), max_size=6))
@derandomized
def test_cutting_is_the_inverse_of_joining(xs: list[np.ndarray]) -> None:
    """Of any dtypes in any order, so that pieces begin at odd bytes."""
    table = headers(xs)
    assert (table.shape, table.dtype) == ((len(xs), WORDS), np.int64)
    assert nbytes(table) == [x.nbytes for x in xs]
    buffer = np.concatenate([np.empty(0, np.uint8), *map(as_bytes, xs)])
    found = cut(buffer, table)
    assert type(found) is tuple
    assert all(map(same, found, xs))
    assert len(found) == len(xs)
    assert all(x.flags.aligned and x.flags.c_contiguous for x in found)


def test_pieces_are_views_unless_they_begin_unaligned() -> None:
    xs = [np.ones(2), np.ones(3, np.int8), np.ones(2, np.float32)]
    buffer = np.concatenate(list(map(as_bytes, xs)))
    f8, i1, f4 = cut(buffer, headers(xs))
    assert [np.shares_memory(x, buffer) for x in (f8, i1, f4)] == [True, True, False]
    np.testing.assert_array_equal(f4, 1)
