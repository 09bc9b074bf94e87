"""What may travel, in which layout, and in which dtype it is added up."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from chainer import Variable
from hypothesis import given, settings

from mnx.arrays import (
    ALONE_FROM,
    DTYPE_NAMES,
    MAX_NDIM,
    OPS,
    as_bytes,
    dtype_number,
    dtype_of,
    flat,
    is_array,
    reduction,
    rows_like,
    sendable,
)
from mnx.errors import ArgumentError, DtypeError
from tests.launching import alone

pytestmark = alone


ALL_DTYPES = [dtype_of(number) for number in range(len(DTYPE_NAMES))]
INTEGERS = [d for d in ALL_DTYPES if d.kind in 'iu']
PLAIN_FLOATS = [np.dtype(name) for name in ('float32', 'float64', 'longdouble')]
HALVES = [np.dtype('float16'), np.dtype(ml_dtypes.bfloat16)]
F4, F8, U1, BOOL = map(np.dtype, ('float32', 'float64', 'uint8', 'bool'))

derandomized = settings(derandomize=True, max_examples=60, deadline=None)


# --- numbers of dtypes ---------------------------------------------------------------------------


def test_every_dtype_has_a_number_of_its_own() -> None:
    assert len(set(ALL_DTYPES)) == len(DTYPE_NAMES) == 17
    assert [dtype_number(d) for d in ALL_DTYPES] == list(range(17))


@pytest.mark.parametrize('dtype', ['O', 'U3', 'S3', 'M8[s]', 'm8[s]', 'V4', 'f4,i4'])
def test_what_is_no_number_has_none(dtype: str) -> None:
    assert dtype_number(np.dtype(dtype)) == -1


# --- reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize('op', ['sum', 'prod', 'max', 'min'])
@pytest.mark.parametrize('dtype', [*INTEGERS, *PLAIN_FLOATS], ids=str)
def test_numbers_are_reduced_as_they_are(dtype: np.dtype, op: str) -> None:
    rule = reduction(dtype, op)
    assert (rule.wire, rule.op, rule.result) == (dtype, op, dtype)


@pytest.mark.parametrize('dtype', [*INTEGERS, BOOL], ids=str)
def test_the_mean_of_integers_is_float64(dtype: np.dtype) -> None:
    rule = reduction(dtype, 'mean')
    assert (rule.wire, rule.op, rule.result) == (F8, 'sum', F8)
    assert np.mean(np.ones(2, dtype)).dtype == F8  # as NumPy


@pytest.mark.parametrize('op', OPS)
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_halves_are_added_up_in_float32(dtype: np.dtype, op: str) -> None:
    rule = reduction(dtype, op)
    assert (rule.wire, rule.result) == (F4, dtype)
    assert rule.op == {'mean': 'sum'}.get(op, op)


@pytest.mark.parametrize(('op', 'on_wire'), [('sum', 'max'), ('max', 'max'),
                                             ('prod', 'min'), ('min', 'min')])  # fmt: skip
def test_bools_are_reduced_as_by_numpy(op: str, on_wire: str) -> None:
    rule = reduction(BOOL, op)
    assert (rule.wire, rule.op, rule.result) == (U1, on_wire, BOOL)
    for ranks in ([False, False], [True, False], [True, True]):
        sent = np.array(ranks).astype(rule.wire)
        by_numpy = np.logical_or if op in ('sum', 'max') else np.logical_and
        assert getattr(np, on_wire)(sent).astype(rule.result) == by_numpy.reduce(ranks)


@pytest.mark.parametrize('dtype', [d for d in ALL_DTYPES if d.kind == 'c'], ids=str)
def test_complex_numbers_have_no_order(dtype: np.dtype) -> None:
    for op in ('sum', 'prod', 'mean'):
        assert reduction(dtype, op).wire == reduction(dtype, op).result == dtype
    for op in ('max', 'min'):
        with pytest.raises(DtypeError, match=f'{op} of {dtype} is not defined'):
            reduction(dtype, op)


def test_an_unknown_operation_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"'average'.*sum, mean, max, min, prod"):
        reduction(F4, 'average')


# --- what can be sent ----------------------------------------------------------------------------


@st.composite
def laid_out(draw: st.DrawFn) -> np.ndarray:
    """An array of any dtype, shape, order, step and byte order."""
    dtype = draw(st.sampled_from(ALL_DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    x = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    if draw(st.booleans()):
        x = np.asfortranarray(x) if x.ndim else x
    if draw(st.booleans()) and x.ndim:
        x = x[:: draw(st.sampled_from([-2, -1, 2]))]
    swap = draw(st.booleans()) and dtype.name != 'bfloat16'
    return x.astype(dtype.newbyteorder('S')) if swap else x


@given(laid_out())
@derandomized
def test_what_is_sent_is_equal_contiguous_and_native(x: np.ndarray) -> None:
    sent = sendable(x, 'send')
    assert sent.shape == x.shape
    assert sent.dtype == x.dtype.newbyteorder('=')
    assert sent.dtype.isnative
    assert sent.flags.c_contiguous
    np.testing.assert_array_equal(sent, x)
    assert (sent is x) == (x.flags.c_contiguous and x.dtype.isnative)
    assert flat(sent).shape == (x.size,)
    assert as_bytes(sent).tobytes() == sent.tobytes()
    assert np.shares_memory(flat(sent), sent) == np.shares_memory(as_bytes(sent), sent)


def test_what_begins_at_an_odd_address_is_copied() -> None:
    x = np.frombuffer(b'x' + np.arange(6.0).tobytes(), np.uint8)[1:].view('f8').reshape(2, 3)
    assert not x.flags.aligned
    sent = sendable(x, 'send')
    assert sent.flags.aligned
    np.testing.assert_array_equal(sent, x)


def test_a_subclass_is_sent_as_a_plain_array() -> None:
    sent = sendable(np.asmatrix(np.eye(2)), 'send')
    assert type(sent) is np.ndarray
    assert flat(sent).shape == (4,)


def test_bytes_and_flat_are_views() -> None:
    x = np.zeros((2, 3), F4)
    flat(x)[4] = 1
    as_bytes(x)[:4] = 255
    assert x[1, 1] == 1
    assert np.isnan(x[0, 0])


def test_a_scalar_of_numpy_is_an_array_of_no_dimensions() -> None:
    sent = sendable(np.float32(1.5), 'send')
    assert (type(sent), sent.shape, sent.dtype, float(sent)) == (np.ndarray, (), F4, 1.5)


@pytest.mark.parametrize('x', [None, 1.5, [1, 2], 'text', Variable(np.zeros(1, 'f'))], ids=repr)
def test_other_objects_are_sent_by_other_methods(x: object) -> None:
    assert not is_array(x)
    with pytest.raises(
        DtypeError, match=f'^bcast: needs a .* array but got {type(x).__name__}.*_obj'
    ):
        sendable(x, 'bcast')


@pytest.mark.parametrize('dtype', ['O', 'U3', 'M8[s]', 'f4,i4'])
def test_arrays_of_other_things_than_numbers_are_refused(dtype: str) -> None:
    with pytest.raises(DtypeError, match=r'^gather: dtype .* cannot travel as an array.*_obj'):
        sendable(np.zeros(2, dtype), 'gather')


def test_a_header_has_room_for_so_many_dimensions() -> None:
    x = np.zeros((1,) * MAX_NDIM)
    assert sendable(x, 'send') is x
    with pytest.raises(ArgumentError, match=r'^send: arrays of 15 dimensions'):
        sendable(x[None], 'send')


@pytest.mark.parametrize('shape', [(), (3,), (0, 2), (2, 3)])
def test_rows_like_another_array(shape: tuple[int, ...]) -> None:
    rows = rows_like(np.zeros(shape, 'f4'), 3)
    assert [(type(x), x.shape, x.dtype) for x in rows] == [(np.ndarray, shape, F4)] * 3
    assert all(x.flags.c_contiguous and x.flags.writeable for x in rows)


def test_rows_share_memory_unless_they_are_large() -> None:
    few = ALONE_FROM // 4
    for size, share in [(1, True), (few - 1, True), (few, False)]:
        first, second = rows_like(np.zeros(size, F4), 2)
        assert (first.base is not None and first.base is second.base) == share
        first[...], second[...] = 1, 2
        assert (first == 1).all()
