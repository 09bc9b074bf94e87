"""Ranks that disagree, or fail, in calls that are new or known; what is kept of a known one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, DtypeError, MismatchError, RemoteError


def same(x: np.ndarray, expected: np.ndarray) -> None:
    assert type(x) is np.ndarray
    assert x.dtype == expected.dtype
    assert x.shape == expected.shape
    np.testing.assert_array_equal(x, expected)


def test_rows_of_one_shape_in_two_ways(any_comm: Communicator) -> None:
    """A rank's one array is shaped as each of the others' arrays."""
    n, rank = any_comm.size, any_comm.rank
    table = np.arange(3.0 * n).reshape(n, 3)
    given = table if rank == 0 else [table + 100 * rank + 10 * r for r in range(n)]
    found = any_comm.alltoall(given)
    same(found[0], table[rank])
    for sender in range(1, n):
        same(found[sender], table + 100 * sender + 10 * rank)


def rows(comm: Communicator, too_many: int) -> np.ndarray:
    return np.ones((comm.size + too_many, 2))


BAD: dict[str, tuple[type[Exception], str, Callable[[Communicator], object]]] = {
    'object array': (DtypeError, 'object', lambda c: c.allreduce(np.array([object()]))),
    'string array': (DtypeError, 'cannot travel', lambda c: c.bcast(np.array(['a']))),
    'not an array': (DtypeError, 'list', lambda c: c.allreduce([1, 2])),
    'no array at root': (DtypeError, 'NoneType', lambda c: c.bcast(None)),
    'unknown op': (ArgumentError, 'unknown operation', lambda c: c.allreduce(np.ones(1), 'xor')),
    'root too large': (ArgumentError, 'root', lambda c: c.bcast(np.ones(1), root=c.size)),
    'root negative': (ArgumentError, 'root', lambda c: c.gather(np.ones(1), root=-1)),
    'root not a number': (ArgumentError, 'root', lambda c: c.reduce(np.ones(1), root='0')),
    'too few to scatter': (ArgumentError, 'per rank', lambda c: c.scatter(rows(c, -1))),
    'too many to all': (ArgumentError, 'per rank', lambda c: c.alltoall(rows(c, 1))),
    'wrong first axis': (ArgumentError, 'per rank', lambda c: c.reduce_scatter(rows(c, 1))),
    '0-d to scatter': (ArgumentError, 'per rank', lambda c: c.scatter(np.ones(()))),
    'a number to scatter': (ArgumentError, 'per rank', lambda c: c.scatter(5)),
    'a number to all': (ArgumentError, 'per rank', lambda c: c.alltoall(5)),
    'nothing to send': (DtypeError, 'NoneType', lambda c: c.send(None, 0)),
    'a number to send': (DtypeError, 'float', lambda c: c.send(1.5, 0)),
    'too many dimensions': (ArgumentError, 'dimensions', lambda c: c.allgather(np.ones((1,) * 15))),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_an_error_on_every_rank(comm: Communicator, case: str) -> None:
    error, match, call = BAD[case]
    with pytest.raises(error, match=match):
        call(comm)
    comm.barrier()  # and the communicator is still good


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(120)
@pytest.mark.parametrize('is_known', [False, True], ids=['new', 'known'])
@pytest.mark.parametrize(
    'case', [c for c in BAD if not {'root', 'scatter', 'send'} & set(c.split())]
)
def test_bad_input_on_one_rank_is_an_error_on_every_rank(
    comm: Communicator, case: str, is_known: bool
) -> None:
    """Also where the other ranks' call is one that they have made before."""
    error, match, call = BAD[case]
    good: dict[str, Callable[[], object]] = {
        'string array': lambda: comm.bcast(np.ones(1)),
        'too many to all': lambda: comm.alltoall([np.ones(1)] * comm.size),
        'a number to all': lambda: comm.alltoall([np.ones(1)] * comm.size),
        'wrong first axis': lambda: comm.reduce_scatter(np.ones((comm.size, 2))),
        'too many dimensions': lambda: comm.allgather(np.ones(1)),
    }
    others = good.get(case, lambda: comm.allreduce(np.ones(2)))
    if is_known:
        others()
    odd = 0 if case == 'string array' else 1
    with pytest.raises(error, match=match):
        call(comm) if comm.rank == odd else others()
    comm.barrier()


DISAGREE: dict[str, Callable[[Communicator, bool], object]] = {
    'dtype of equal size': lambda c, odd: c.allreduce(np.ones(4, 'i4' if odd else 'f4')),
    'shape of equal size': lambda c, odd: c.allreduce(np.ones((3, 2) if odd else (2, 3))),
    'length': lambda c, odd: c.allreduce(np.ones(5 if odd else 4)),
    'op': lambda c, odd: c.allreduce(np.ones(4), 'max' if odd else 'sum'),
    'root': lambda c, odd: c.bcast(np.ones(1), root=int(odd)),
    'collective': lambda c, odd: c.barrier() if odd else c.allreduce(np.ones(4)),
    'array or object': lambda c, odd: c.gather_obj(1) if odd else c.gather(np.ones(4)),
    'rows': lambda c, odd: c.reduce_scatter(np.ones((c.size, 2 + odd))),
}


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(120)
@pytest.mark.parametrize('is_known', [False, True], ids=['new', 'known'])
@pytest.mark.parametrize('case', DISAGREE)
def test_ranks_that_disagree_all_hear_who(comm: Communicator, case: str, is_known: bool) -> None:
    """Also where each of them makes a call that all have made before."""
    odd = comm.size - 1
    for kind in [False, True] if is_known else []:
        DISAGREE[case](comm, kind)
    with pytest.raises(MismatchError) as caught:
        DISAGREE[case](comm, comm.rank == odd)
    text = str(caught.value)
    assert all(f'rank {r} ' in text for r in range(comm.size))
    assert text.count('test_array_calls.py:') == comm.size
    if comm.size > 2:
        assert f'> rank {odd}' in text
    comm.barrier()


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(120)
def test_a_call_of_a_known_kind_that_one_rank_skips(comm: Communicator) -> None:
    def three(comm: Communicator, skips: bool) -> None:
        comm.allreduce(np.ones(4))
        if not skips:
            comm.allreduce(np.ones(4))
        comm.allgather(np.ones(2))

    three(comm, skips=False)
    with pytest.raises(MismatchError, match='allgather'):
        three(comm, skips=comm.rank == 0)
    comm.barrier()
    three(comm, skips=False)


ROOTS = [1.0, '0', None, [0], np.array([0, 0]), -1, 99]


@pytest.mark.parametrize('root', ROOTS, ids=repr)
def test_a_root_that_is_none_where_calls_are_known(comm: Communicator, root: Any) -> None:
    x, row = np.ones(3), np.ones((comm.size, 3))
    for call in (
        lambda root: comm.bcast(x, root),
        lambda root: comm.gather(x, root),
        lambda root: comm.reduce(x, root=root),
        lambda root: comm.scatter(row, root),
    ):
        call(0)
        call(comm.size - 1)
        with pytest.raises(ArgumentError, match='root'):
            call(root)
        call(np.int64(0))
        call(comm.size - 1)


@pytest.mark.parametrize('op', [None, ['sum'], 3, 'Sum'], ids=repr)
def test_an_operation_that_is_none_where_calls_are_known(comm: Communicator, op: Any) -> None:
    for _ in range(2):
        comm.allreduce(np.ones(3), 'sum')
    with pytest.raises((ArgumentError, TypeError)):
        comm.allreduce(np.ones(3), op)
    comm.barrier()


def test_known_calls_see_new_numbers(any_comm: Communicator) -> None:
    _call_with_new_numbers(any_comm)


def test_known_calls_without_checks(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MNX_CHECK', '0')
    with mnx.create_communicator('naive') as unchecked:
        assert not unchecked.meetings.checks
        _call_with_new_numbers(unchecked)


def _call_with_new_numbers(any_comm: Communicator) -> None:
    """What is kept is the kind of an array, not what is in it."""
    n, rank = any_comm.size, any_comm.rank
    for k in (1, 2, 3):
        base = k * np.arange(1.0, 7).reshape(2, 3)
        every = np.stack([(r + 1) * base for r in range(n)])
        x = every[rank].T.copy().T if k == 2 else every[rank]  # the same shape in another order
        same(any_comm.allreduce(x), base * (n * (n + 1) / 2))
        same(any_comm.allreduce(x, 'mean'), base * (n * (n + 1) / 2) / n)
        same(any_comm.allreduce(x, 'max'), n * base)
        same(np.ascontiguousarray(any_comm.bcast(x, n - 1)), n * base)
        same(np.stack(any_comm.allgather(x)), every)
        found = any_comm.gather(x, n - 1)
        if rank == n - 1:
            same(np.stack(found), every)
        same(any_comm.scatter(every if rank == 0 else None), every[rank])
        rows = every + 100 * rank
        same(np.stack(any_comm.alltoall(rows)), np.stack([x + 100 * r for r in range(n)]))
        same(any_comm.reduce_scatter(rows), n * x + 100 * (n * (n - 1) / 2))


AS_ONE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'plain': lambda x: x,
    'other byte order': lambda x: x.astype('>f8'),
    'Fortran': np.asfortranarray,
    'read-only': lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    'strided': lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    'subclass': lambda x: x.view(type('Own', (np.ndarray,), {})),
}


@pytest.mark.parametrize('row', [(), (3,)], ids=str)
@pytest.mark.parametrize('kind', AS_ONE)
def test_rows_in_one_array(any_comm: Communicator, kind: str, row: tuple[int, ...]) -> None:
    """Twice, and with ranks that give a list, whose call is another one."""
    n, rank = any_comm.size, any_comm.rank
    every = np.arange(float(n * n * np.prod(row, dtype=int))).reshape(n, n, *row)
    x = AS_ONE[kind](every[rank])
    for lists in (set(), set(), {0}, set(range(1, n)), set()):
        given = list(every[rank]) if rank in lists else x
        for sender, y in enumerate(any_comm.alltoall(given)):
            same(np.asarray(y), every[sender, rank])
        same(np.asarray(any_comm.reduce_scatter(given)), every.sum(axis=0)[rank])
        same(np.asarray(any_comm.scatter(given, n - 1)), every[n - 1, rank])


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(60)
@pytest.mark.skipif(not hasattr(np.dtypes, 'StringDType'), reason='needs NumPy 2')
def test_a_dtype_without_a_hash(comm: Communicator) -> None:
    comm.allgather(np.ones(2))
    odd = np.array(['a'], np.dtypes.StringDType(na_object=[1]))
    with pytest.raises((DtypeError, RemoteError, TypeError)):
        comm.allgather(odd if comm.rank == 0 else np.ones(2))
    comm.barrier()


SWAPPED = [np.dtype(kind).newbyteorder() for kind in ('f4', 'i8', 'c16', ml_dtypes.bfloat16)]


@pytest.mark.parametrize('dtype', SWAPPED, ids=lambda dtype: str(dtype.newbyteorder()))
def test_the_other_byte_order_on_some_ranks(comm: Communicator, dtype: np.dtype[Any]) -> None:
    """Whoever sends it, new and known."""
    native = dtype.newbyteorder('=')
    every = [np.arange(3 * r, 3 * r + 3).astype(native) for r in range(comm.size)]
    total = sum(x.astype('c16') for x in every)
    for k in range(3):
        mine = every[comm.rank]
        mine = mine.astype(dtype) if (comm.rank + k) % 2 == 0 else mine
        for root in range(comm.size):
            np.testing.assert_array_equal(comm.bcast(mine, root).astype(native), every[root])
        for found, x in zip(comm.allgather(mine), every, strict=True):
            same(found, x)
        np.testing.assert_array_equal(comm.allreduce(mine).astype('c16'), total)
        comm.send(mine, comm.rank)
        same(comm.recv(comm.rank), every[comm.rank])
