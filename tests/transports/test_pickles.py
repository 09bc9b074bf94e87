"""Objects become bytes and objects again, and the arrays in them are not copied twice."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from mnx.transports import pickles

derandomized = settings(derandomize=True, max_examples=80, deadline=None)

dtypes = st.sampled_from(['?', 'i1', 'u2', 'f4', 'f8', 'c16', '>i4', 'U3', 'M8[s]'])
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=40)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype, shape = draw(dtypes), draw(shapes)
    x = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    return x.T if draw(st.booleans()) else x


objects = st.recursive(
    plain | arrays(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@given(objects)
@derandomized
def test_what_comes_out_is_what_went_in(obj: Any) -> None:
    buffer = pickles.dumps(obj)
    assert (buffer.ndim, buffer.dtype, buffer.size % 16) == (1, np.uint8, 0)
    assert same(pickles.loads(buffer), obj)


def test_arrays_are_aligned_views_of_the_bytes_that_can_be_written() -> None:
    buffer = pickles.dumps({'odd': np.arange(3, dtype=np.int8), 'x': np.arange(5.0)})
    found = pickles.loads(buffer)
    for array in found.values():
        assert np.shares_memory(array, buffer)
        assert array.flags.aligned
        array += 1  # its owner may write
    np.testing.assert_array_equal(pickles.loads(buffer)['x'], np.arange(5.0) + 1)


def test_an_array_stands_in_the_bytes_once() -> None:
    x = np.random.default_rng(0).bytes(100_000)
    assert pickles.dumps(np.frombuffer(x, np.uint8)).size < 101_000


def test_the_original_is_not_shared() -> None:
    x = np.zeros(4)
    buffer = pickles.dumps(x)
    x[:] = 1
    assert not pickles.loads(buffer).any()


def test_all_ranks_get_all_objects_in_the_order_of_ranks(comm) -> None:
    obj = {'rank': comm.rank, 'x': np.full(3 * comm.rank, comm.rank), 'text': 'é' * comm.rank}
    found = pickles.all_gather(comm._control, obj)
    assert [f['rank'] for f in found] == list(range(comm.size))
    assert [f['x'].tolist() for f in found] == [[r] * 3 * r for r in range(comm.size)]
    assert [f['text'] for f in found] == ['é' * r for r in range(comm.size)]


def test_bytes_of_any_length_are_gathered(comm) -> None:
    for length in (0, comm.rank, 5 * (comm.size - 1 - comm.rank)):  # some ranks have none
        found = pickles.all_gather_bytes(comm._control, np.full(length, comm.rank, np.uint8))
        lengths = comm.allgather_obj(length)
        assert [f.tolist() for f in found] == [[r] * n for r, n in enumerate(lengths)]
