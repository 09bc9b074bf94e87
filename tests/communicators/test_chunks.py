from __future__ import annotations

import math

import hypothesis.strategies as st
from hypothesis import given, settings

from mnx.communicators.chunks import cut, share


@given(
    shapes=st.lists(st.lists(st.integers(0, 6), max_size=2).map(tuple), max_size=8),
    length=st.integers(1, 20),
)
@settings(derandomize=True, deadline=None)
def test_every_element_is_in_one_chunk(shapes: list[tuple[int, ...]], length: int) -> None:
    chunks = cut(shapes, length)
    elements = [(s.member, i) for chunk in chunks for s in chunk for i in range(s.start, s.stop)]
    assert elements == [(m, i) for m, shape in enumerate(shapes) for i in range(math.prod(shape))]
    lengths = [sum(s.stop - s.start for s in chunk) for chunk in chunks]
    assert all(n == length for n in lengths[:-1])
    assert all(0 < n <= length for n in lengths)
    for span in (s for chunk in chunks for s in chunk):
        assert span.whole == (span.stop - span.start == math.prod(shapes[span.member]))


@given(length=st.integers(0, 50), owners=st.integers(1, 7))
@settings(derandomize=True, deadline=None)
def test_shares_cover_a_chunk(length: int, owners: int) -> None:
    parts = [list(range(length))[share(length, r, owners)] for r in range(owners + 3)]
    assert [i for part in parts for i in part] == list(range(length))
    assert max(map(len, parts[:owners])) - min(map(len, parts[:owners])) <= 1
    assert not any(parts[owners:])
