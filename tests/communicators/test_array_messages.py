"""Every array method of every communicator against NumPy, with different data on each rank."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError, DtypeError

DTYPES = [
    'bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64',
    'float16', 'float32', 'float64', 'longdouble', 'complex64', 'complex128', 'clongdouble',
    ml_dtypes.bfloat16,
]  # fmt: skip
SHAPES = [(), (0,), (5,), (2, 3), (4, 0, 2)]
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'contiguous': lambda x: x,
    'fortran': lambda x: np.asarray(x, order='F'),
    'strided': lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    'byteswapped': lambda x: x.astype(x.dtype.newbyteorder()),
    'unaligned': lambda x: unaligned(x),
    'matrix': lambda x: np.asmatrix(x) if x.ndim == 2 else x,
    'subclass': lambda x: x.view(np.recarray),
}


def unaligned(x: np.ndarray) -> np.ndarray:
    """As in a file of packed records: it begins at an odd address."""
    found = np.frombuffer(b'x' + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    assert not (found.size and found.flags.aligned)
    return found


def data(rank: int, dtype: Any, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """Small numbers, exact in every dtype, different on each rank and in each place."""
    size = int(np.prod(shape))
    numbers = (np.arange(size) * 7 + rank * 3 + 1) % 11
    x = (numbers % 2) if np.dtype(dtype) == bool else numbers
    if np.dtype(dtype).kind == 'c':
        x = x + 1j * ((numbers + rank) % 5)
    return np.asarray(x).astype(dtype).reshape(shape)


def everyone(comm: Communicator, dtype: Any, shape: tuple[int, ...] = (2, 3)) -> list[np.ndarray]:
    return [data(r, dtype, shape) for r in range(comm.size)]


def same(x: np.ndarray, expected: np.ndarray) -> None:
    assert type(x) is np.ndarray
    assert x.dtype == expected.dtype
    assert x.shape == expected.shape
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('op', ['sum', 'prod', 'max', 'min', 'mean'])
def test_allreduce_every_dtype(any_comm: Communicator, dtype: Any, op: str) -> None:
    dtype = np.dtype(dtype)
    if dtype.kind == 'c' and op in ('max', 'min'):
        with pytest.raises(DtypeError, match='no order'):
            any_comm.allreduce(data(any_comm.rank, dtype), op)
        return
    xs = everyone(any_comm, dtype)
    same(any_comm.allreduce(xs[any_comm.rank], op), serial(xs, op))


def serial(xs: list[np.ndarray], op: str) -> np.ndarray:
    """The same reduction in one process, 16-bit floats in float32 as documented."""
    dtype = xs[0].dtype
    if dtype.name in ('float16', 'bfloat16'):
        return serial([x.astype('f4') for x in xs], op).astype(dtype)
    if op == 'mean':
        wide = np.float64 if dtype.kind in 'biu' else dtype
        return (functools.reduce(operator.add, [x.astype(wide) for x in xs]) / len(xs)).astype(wide)
    ufunc = {'sum': np.add, 'prod': np.multiply, 'max': np.maximum, 'min': np.minimum}[op]
    return functools.reduce(ufunc, xs)


@pytest.mark.parametrize('dtype', ['float64', 'float16', 'bool', 'int32'])
def test_start_allreduce(any_comm: Communicator, dtype: str) -> None:
    """Several at once, with other collectives in between."""
    comm = any_comm
    shapes = [(2, 3), (), (0,), (50_000,)]
    pending = [comm.start_allreduce(data(comm.rank, dtype, shape), 'mean') for shape in shapes]
    assert comm.allgather_obj(comm.rank) == list(range(comm.size))
    while not all([p.test() for p in pending]):  # noqa: C419 - all of them make progress
        pass
    for p, shape in zip(pending, shapes, strict=True):
        same(p.wait(), serial(everyone(comm, dtype, shape), 'mean'))
        assert p.wait() is p.wait()


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_method_every_layout(
    any_comm: Communicator, shape: tuple[int, ...], layout: str
) -> None:
    for _ in range(2 if len(shape) == 2 else 1):  # a call like one before takes a shorter way
        call_every_method(any_comm, shape, layout)


def call_every_method(comm: Communicator, shape: tuple[int, ...], layout: str) -> None:
    root = comm.size - 1
    plain = everyone(comm, 'float64', shape)
    mine = LAYOUTS[layout](plain[comm.rank])
    before = mine.copy()
    same(comm.allreduce(mine), serial(plain, 'sum'))
    same(np.asarray(comm.bcast(mine, root), 'f8'), plain[root])  # the root's own, there
    for found in (comm.allgather(mine), comm.gather(mine, root)):
        if found is not None:
            for x, expected in zip(found, plain, strict=True):
                same(x, expected)
    assert (comm.gather(mine, root) is None) == (comm.rank != root)
    same(comm.start_allreduce(mine).wait(), serial(plain, 'sum'))
    for x, expected in zip(comm.alltoall([mine] * comm.size), plain, strict=True):
        same(x, expected)
    same(comm.reduce_scatter([mine] * comm.size), serial(plain, 'sum'))
    reduced = comm.reduce(mine, 'max', root)
    assert (reduced is None) == (comm.rank != root)
    if reduced is not None:
        same(reduced, serial(plain, 'max'))
    np.testing.assert_array_equal(mine, before)  # nothing writes to its argument


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_moves_are_exact_for_every_dtype(any_comm: Communicator, dtype: Any) -> None:
    comm = any_comm
    for root in range(comm.size):
        same(comm.bcast(data(comm.rank, dtype) if comm.rank == root else None, root),
             data(root, dtype))  # fmt: skip
        gathered = comm.gather(data(comm.rank, dtype), root)
        rows = [data(10 * comm.rank + r, dtype) for r in range(comm.size)]
        same(comm.scatter(rows if comm.rank == root else None, root),
             data(10 * root + comm.rank, dtype))  # fmt: skip
        if comm.rank == root:
            for x, expected in zip(gathered, everyone(comm, dtype), strict=True):
                same(x, expected)
        else:
            assert gathered is None
    for source, x in enumerate(comm.alltoall(rows)):
        same(x, data(10 * source + comm.rank, dtype))


def test_shapes_and_dtypes_may_differ_by_rank(any_comm: Communicator) -> None:
    comm = any_comm
    dtypes = ['int8', 'float64', 'bool', 'complex64', 'float16']
    mine = [data(r, dtypes[(comm.rank + r) % 5], (r, comm.rank + 1)) for r in range(comm.size)]
    for source, x in enumerate(comm.alltoall(mine)):
        same(x, data(comm.rank, dtypes[(source + comm.rank) % 5], (comm.rank, source + 1)))
    for r, x in enumerate(comm.allgather(data(comm.rank, dtypes[comm.rank % 5], (comm.rank, 3)))):
        same(x, data(r, dtypes[r % 5], (r, 3)))


def test_reduce_scatter(any_comm: Communicator) -> None:
    comm = any_comm
    n, rank = comm.size, comm.rank

    def rows(source: int, dtypes: list[str]) -> list[np.ndarray]:
        return [data(source + r, dtypes[r % len(dtypes)], (r + 1, 2)) for r in range(n)]

    for dtypes in (['float32'], ['float16'], ['float64', 'int32']):
        for op in ('sum', 'max', 'mean'):
            all_rows = [rows(source, dtypes)[rank] for source in range(n)]
            same(comm.reduce_scatter(rows(rank, dtypes), op), serial(all_rows, op))
    stacked = np.arange(n * 3, dtype='f8').reshape(n, 3) + rank
    same(
        comm.reduce_scatter(stacked),
        sum(np.arange(n * 3.0).reshape(n, 3)[rank] + s for s in range(n)),
    )


def test_one_array_stands_for_its_rows(any_comm: Communicator) -> None:
    comm = any_comm
    table = np.arange(comm.size * 2).reshape(comm.size, 2)
    same(comm.scatter(table if comm.rank == 0 else None), table[comm.rank])
    for source, x in enumerate(comm.alltoall(table + 100 * comm.rank)):
        same(x, table[comm.rank] + 100 * source)


def test_all_ranks_get_the_same_bits(any_comm: Communicator) -> None:
    comm = any_comm
    x = np.random.default_rng(comm.rank).standard_normal(10_001).astype('f4')
    results = comm.allgather(comm.allreduce(x))
    assert all(r.tobytes() == results[0].tobytes() for r in results)


def test_float16_sum_is_rounded_once(comm: Communicator) -> None:
    x = np.array([2048.0 if comm.rank == 0 else 1.0], 'float16')
    # in float16 arithmetic 2048 + 1 is 2048, so a chain of such sums would stay there
    expected = np.float16(np.float32(2048 + comm.size - 1))
    same(comm.allreduce(x), np.array([expected]))
    overflow = comm.allreduce(np.full(3, 40000, 'float16'), 'mean')
    same(overflow, np.full(3, 40000, 'float16'))


@pytest.mark.needs_ranks(2)
def test_send_recv(any_comm: Communicator) -> None:
    comm = any_comm
    messages = [
        np.arange(6, dtype='f4').reshape(2, 3).T,
        np.array(3.5, 'float16'),
        np.empty((0, 4), 'int8'),
        (np.ones(3, 'int32'), np.array(True), np.zeros((2, 2), 'complex64')),
        (np.arange(5.0),),
        (),
        np.random.default_rng(0).standard_normal((300, 400)),
        (np.arange(100_000), np.arange(3, dtype='u1')),
    ]
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for tag, message in enumerate(messages):
        if comm.rank == 0:
            comm.send(message, right, tag)
            found = comm.recv(left, tag)
        else:
            found = comm.recv(left, tag)
            comm.send(found, right, tag)
        assert isinstance(found, tuple) == isinstance(message, tuple)
        bare = not isinstance(message, tuple)
        for x, expected in zip(*([found], [message]) if bare else (found, message), strict=True):
            same(x, expected)


@pytest.mark.needs_ranks(2)
def test_tags_choose_the_message(comm: Communicator) -> None:
    if comm.rank == 0:
        comm.send(np.array([1]), 1, tag=7)
        comm.send(np.array([2]), 1, tag=np.int64(8))
    if comm.rank == 1:
        assert comm.recv(0, tag=8)[0] == 2
        assert comm.recv(np.int32(0), tag=7)[0] == 1


def test_a_rank_may_write_to_itself(comm: Communicator) -> None:
    big = np.arange(100_000.0) + comm.rank
    comm.send(big, comm.rank, tag=3)
    comm.send((big, big), comm.rank, tag=4)
    assert len(comm.recv(comm.rank, tag=4)) == 2
    same(comm.recv(comm.rank, tag=3), big)
    with pytest.raises(ArgumentError, match='has sent none'):
        comm.recv(comm.rank, tag=3)


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize('op', ['max', 'min'])
def test_a_nan_is_a_nan_on_every_rank(any_comm: Communicator, op: str, dtype: Any) -> None:
    comm = any_comm
    xs = [np.array([r, -r, 3, np.inf, -np.inf, 1], 'f8').astype(dtype) for r in range(comm.size)]
    xs[0][2] = xs[-1][0] = np.nan
    expected = functools.reduce(np.maximum if op == 'max' else np.minimum, xs)
    for x in (comm.allreduce(xs[comm.rank], op), comm.start_allreduce(xs[comm.rank], op).wait()):
        assert x.dtype == dtype
        np.testing.assert_array_equal(x.astype('f8'), expected.astype('f8'))
    for root in range(comm.size):
        y = comm.reduce(xs[comm.rank], op, root)
        assert (y is None) == (comm.rank != root)
        if y is not None:
            np.testing.assert_array_equal(y.astype('f8'), expected.astype('f8'))


@pytest.mark.parametrize('who', ['first', 'last'])
@pytest.mark.parametrize('op', ['max', 'min'])
def test_a_number_that_is_nan(any_comm: Communicator, op: str, who: str) -> None:
    comm = any_comm
    odd = 0 if who == 'first' else comm.size - 1
    x = np.array(np.nan if comm.rank == odd else comm.rank, 'f4')
    for found in (comm.allreduce(x, op), comm.start_allreduce(x, op).wait()):
        assert found.shape == ()
        assert np.isnan(found)
    assert np.isnan(comm.allreduce(x[()], op))


@pytest.mark.parametrize('who', ['first', 'last'])
@pytest.mark.parametrize('dtypes', [['f4'], ['f8', 'i4'], ['i4', 'f2']], ids=str)
@pytest.mark.parametrize('op', ['max', 'min'])
def test_a_nan_scattered(any_comm: Communicator, op: str, dtypes: list[str], who: str) -> None:
    comm, n = any_comm, any_comm.size

    def rows(source: int) -> list[np.ndarray]:
        made = [np.array([source + r, -source, 5], dtypes[r % len(dtypes)]) for r in range(n)]
        for row in made:
            if row.dtype.kind == 'f' and source == (0 if who == 'first' else n - 1):
                row[1] = np.nan
        return made

    extreme = np.maximum if op == 'max' else np.minimum
    expected = functools.reduce(extreme, [rows(source)[comm.rank] for source in range(n)])
    same(comm.reduce_scatter(rows(comm.rank), op), expected)


def test_a_masked_array_cannot_travel(comm: Communicator) -> None:
    with pytest.raises(DtypeError, match='mask'):
        comm.allreduce(np.ma.masked_array([1.0, 2.0], [True, False]))


def test_a_started_sum_that_nobody_waits_for(comm: Communicator) -> None:
    """MPI writes to its memory all the same."""
    for _ in range(30):
        comm.start_allreduce(np.full(300_000, 1.0))
    assert comm.allreduce(np.ones(1))[0] == comm.size
