"""The plan is a pure function; the packer puts back what it took."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from mnx.packing import Packer, plan
from tests.launching import alone

pytestmark = alone


F4, F8 = np.dtype('f4'), np.dtype('f8')


def test_nothing_everything_or_the_small_ones() -> None:
    shapes, wires = [(100,), (1,), (2, 3), (200,)], [F4] * 4
    assert [b.members for b in plan(shapes, wires, 0)] == [(0,), (1,), (2,), (3,)]
    assert [b.members for b in plan(shapes, wires, float('inf'))] == [(0, 1, 2, 3)]
    assert [b.members for b in plan(shapes, wires, 100)] == [(0,), (1, 2), (3,)]


def test_dtypes_do_not_share_a_buffer_and_empty_arrays_do_not_travel() -> None:
    buckets = plan([(2,), (0, 5), (3,), (4,)], [F4, F4, F8, F4], float('inf'))
    assert [(b.members, b.wire) for b in buckets] == [((0, 3), F4), ((2,), F8)]


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=8),
    below=st.sampled_from([0, 40, float('inf')]),
    data=st.data(),
)
@settings(derandomize=True, max_examples=80, deadline=None)
def test_every_array_comes_back(shapes: list[tuple[int, ...]], below: float, data) -> None:
    dtypes = data.draw(
        st.lists(st.sampled_from(['f2', 'f4', 'f8']), min_size=len(shapes), max_size=len(shapes))
    )
    wires = [F4 if d == 'f2' else np.dtype(d) for d in dtypes]
    orders = data.draw(st.lists(st.sampled_from('CF'), min_size=len(shapes), max_size=len(shapes)))
    arrays = [
        np.asarray(np.random.default_rng(i).integers(0, 99, s).astype(d), order=o)
        for i, (s, d, o) in enumerate(zip(shapes, dtypes, orders, strict=True))
    ]
    before = [a.copy() for a in arrays]
    packer, seen = Packer(), []
    for bucket in plan(shapes, wires, below):
        seen += bucket.members
        buffer = packer.pack(bucket, arrays)
        assert (buffer.ndim, buffer.dtype) == (1, bucket.wire)
        buffer *= 2
        packer.unpack(bucket, buffer, arrays)
    assert sorted(seen) == [i for i, s in enumerate(shapes) if 0 not in s]
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old * 2)


def test_a_large_contiguous_array_is_its_own_buffer() -> None:
    array = np.zeros((3, 4), 'f4')
    (bucket,) = plan([array.shape], [F4], 0)
    assert np.shares_memory(Packer().pack(bucket, [array]), array)
    assert not np.shares_memory(Packer().pack(bucket, [np.asfortranarray(array)]), array)
