from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from mnx.communicators.chunks import Line, share
from mnx.packing import shaped_views
from tests.launching import alone

pytestmark = alone


@given(
    shapes=st.lists(st.lists(st.integers(0, 6), max_size=2).map(tuple), max_size=8),
    length=st.integers(1, 20),
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_stretches_hold_the_elements_in_order(shapes: list[tuple[int, ...]], length: int) -> None:
    line = Line(shapes)
    numbers = np.arange(line.length)
    arrays = shaped_views(numbers, shapes)
    for start in range(0, line.length, length):
        stop = min(start + length, line.length)
        stretch = line.stretch(start, stop)
        views = stretch.of(arrays)
        assert stretch.length == stop - start
        assert [v.shape for v in views] == stretch.shapes(shapes)
        assert all(np.shares_memory(v, numbers) for v in views if v.size)
        assert [int(i) for v in views for i in v.ravel()] == list(range(start, stop))
    empty = line.stretch(line.length, line.length)
    assert sum(v.size for v in empty.of(arrays)) == empty.length == 0


@given(length=st.integers(0, 50), owners=st.integers(1, 7))
@settings(derandomize=True, deadline=None)
def test_shares_cover_a_chunk(length: int, owners: int) -> None:
    parts = [list(range(length))[share(length, r, owners)] for r in range(owners + 3)]
    assert [i for part in parts for i in part] == list(range(length))
    assert max(map(len, parts[:owners])) - min(map(len, parts[:owners])) <= 1
    assert not any(parts[owners:])
