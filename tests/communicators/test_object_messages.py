"""The object methods, with different objects on each rank."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MnxError, RemoteError
from mnx.transports import pickles


def thing(rank: int) -> dict[str, Any]:
    return {'rank': rank, 'text': 'ä' * rank, 'array': np.arange(rank * 1000.0), 'none': None}


def same(found: dict[str, Any], rank: int) -> None:
    expected = thing(rank)
    np.testing.assert_array_equal(found.pop('array'), expected.pop('array'))
    assert found == expected


def test_pickles_keep_arrays_outside_and_writable() -> None:
    obj = [np.arange(5, dtype='i1'), np.arange(6.0).reshape(2, 3).T, b'x', {'k': np.float16(1)}]
    found = pickles.loads(pickles.dumps(obj))
    for x, expected in zip(found[:2], obj[:2], strict=True):
        np.testing.assert_array_equal(x, expected)
        assert x.flags.writeable
        assert x.flags.aligned
    assert found[2:] == obj[2:]


@pytest.mark.parametrize('root', [0, -1])
def test_rooted(any_comm: Communicator, root: int) -> None:
    comm, root = any_comm, root % any_comm.size
    at_root = comm.rank == root
    found = comm.bcast_obj(thing(root) if at_root else 'ignored', root=root)
    same(found, root)
    gathered = comm.gather_obj(thing(comm.rank), root)
    assert (gathered is None) != at_root
    for r, obj in enumerate(gathered or []):
        same(obj, r)
    same(comm.scatter_obj([thing(r + 5) for r in range(comm.size)] if at_root else None, root),
         comm.rank + 5)  # fmt: skip


def test_none_is_an_object(comm: Communicator) -> None:
    assert comm.bcast_obj(None) is None
    assert comm.allgather_obj(None) == [None] * comm.size


def test_all_to_all(any_comm: Communicator) -> None:
    comm = any_comm
    for r, obj in enumerate(comm.allgather_obj(thing(comm.rank))):
        same(obj, r)
    got = comm.alltoall_obj([(comm.rank, r) for r in range(comm.size)])
    assert got == [(s, comm.rank) for s in range(comm.size)]
    assert comm.allreduce_obj([comm.rank]) == list(range(comm.size))
    assert comm.allreduce_obj(1.5) == 1.5 * comm.size


def test_agree(comm: Communicator) -> None:
    assert comm.agree(True)
    assert comm.agree(comm.rank >= 0)
    assert comm.agree(comm.rank != comm.size - 1) is False


@pytest.mark.parametrize('max_buf_len', [1, 7, 1000, 2**31 - 2])
def test_bcast_in_pieces(comm: Communicator, max_buf_len: int) -> None:
    assert comm.bcast_obj('abc' * 50 if comm.rank == 0 else None, max_buf_len) == 'abc' * 50


@pytest.mark.parametrize('max_buf_len', [0, -1, 2**31 - 1])
def test_bad_buffer_length(comm: Communicator, max_buf_len: int) -> None:
    with pytest.raises(ArgumentError, match='max_buf_len'):
        comm.bcast_obj(1, max_buf_len)


@pytest.mark.needs_ranks(2)
def test_send_recv_any_tag_and_source(comm: Communicator) -> None:
    mpi = pytest.importorskip('mpi4py.MPI')
    if comm.rank == 1:
        comm.send_obj(thing(1), 0, tag=5)
        comm.send_obj('second', 0, tag=6)
        comm.send_obj({'x': np.zeros(100_000)}, 0, tag=7)
        comm.send(np.arange(3), 0, tag=0)
    if comm.rank == 0:
        status = mpi.Status()
        same(comm.recv_obj(1, status), 1)
        assert (status.source, status.tag) == (1, 5)
        assert comm.recv_obj(mpi.ANY_SOURCE, tag=6) == 'second'
        assert comm.recv_obj(1, tag=mpi.ANY_TAG)['x'].size == 100_000
        np.testing.assert_array_equal(comm.recv(1), np.arange(3))


def test_status_of_a_message_to_oneself(comm: Communicator) -> None:
    mpi = pytest.importorskip('mpi4py.MPI')
    status = mpi.Status()
    comm.send_obj('me', comm.rank, tag=5)
    assert comm.recv_obj(comm.rank, status) == 'me'
    assert (status.source, status.tag) == (comm.rank, 5)
    with pytest.raises(ArgumentError, match='tag'):
        comm.send_obj('me', comm.rank, tag=-5)


@pytest.mark.needs_ranks(2)
def test_objects_in_the_mail_do_not_meet_collectives(comm: Communicator) -> None:
    """A rank that waits for any object must not take a piece of a gather instead."""
    if comm.rank == 1:
        comm.gather(np.arange(1000.0) + 1)
        comm.send_obj('after', 0)
    else:
        got = comm.gather(np.arange(1000.0))
        if comm.rank == 0:
            assert comm.recv_obj(1) == 'after'
            np.testing.assert_array_equal(got[1], np.arange(1000.0) + 1)


@pytest.mark.needs_ranks(2)
def test_what_cannot_be_pickled_on_one_rank_raises_on_all(comm: Communicator) -> None:
    bad = threading.Lock() if comm.rank == 1 else 1
    error = (TypeError, pickle.PicklingError) if comm.rank == 1 else RemoteError
    with pytest.raises(error, match='pickle'):
        comm.gather_obj(bad)
    with pytest.raises((TypeError, RemoteError)):
        comm.allreduce_obj(1 if comm.rank else 'a')


@pytest.mark.parametrize('inside', [False, True])
def test_together_may_be_nested(comm: Communicator, inside: bool) -> None:
    """A rank fails before or inside a collective of the block, where the others are."""
    odd = comm.size - 1
    ranks = {} if comm.rank == odd else {'rank': comm.rank}
    with pytest.raises((KeyError, RemoteError), match='rank'), comm.together('outer'):  # noqa: PT012
        here = None if inside else ranks['rank']
        with comm.together('inner'):
            comm.allgather_obj(here if here is not None else ranks['rank'])
    comm.barrier()


@pytest.mark.needs_ranks(2)
def test_an_error_of_part_of_the_ranks_reaches_all(comm: Communicator) -> None:
    """A collective of a split fails inside a block of all ranks; those outside hear of it."""
    part = comm.split(0 if comm.rank < comm.size - 1 else 1, comm.rank)
    with pytest.raises(ArgumentError, match='root'), comm.together('outer'):  # noqa: PT012
        if comm.rank < comm.size - 1:
            part.bcast(np.ones(1), root=99)
    comm.barrier()


@pytest.mark.needs_ranks(2)
def test_an_error_that_was_shared_before(comm: Communicator) -> None:
    with pytest.raises(ArgumentError) as caught:
        comm.bcast(np.ones(1), root=99)
    with pytest.raises(ArgumentError, match='root'), comm.together('later'):  # noqa: PT012
        if comm.rank == 1:
            raise caught.value
    comm.barrier()


@pytest.mark.needs_ranks(2)
def test_an_error_class_that_others_cannot_know(comm: Communicator) -> None:
    class LocalError(ArgumentError):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f'{one} and {two}')

    def fail() -> None:
        if comm.rank == 1:
            raise LocalError(1, 2)

    with pytest.raises(ArgumentError, match='1 and 2'), comm.together('call'):
        fail()


def test_together_passes_on_a_foreign_error(comm: Communicator) -> None:
    odd = comm.size - 1
    expected = KeyError if comm.rank == odd else RemoteError
    found = {} if comm.rank == odd else {'secret': 1}
    with pytest.raises(expected, match='secret'), comm.together('lookup'):
        found['secret']
    comm.barrier()


FAILING = {
    'before the inner block': lambda comm: _fail_if(comm.rank == 1),
    'inside the inner block': lambda comm: _fail_inside(comm, comm.rank == 1),
    'inside, on all': lambda comm: _fail_inside(comm, True),
    'in a collective': lambda comm: comm.bcast(np.ones(1), root=99 if comm.rank == 1 else 0),
    'in calls that differ': lambda comm: comm.barrier() if comm.rank == 1 else comm.bcast_obj(1),
}


def _fail_if(odd: bool) -> None:
    if odd:
        raise ArgumentError('as planned')


def _fail_inside(comm: Communicator, odd: bool) -> None:
    with comm.together('inner'):
        _fail_if(odd)


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(120)
@pytest.mark.parametrize('catches', ['the first', 'the odd', 'all', 'none'])
@pytest.mark.parametrize('how', FAILING)
def test_an_error_that_some_catch_inside_a_block(
    comm: Communicator, how: str, catches: str
) -> None:
    """Who catches it goes on inside the block, and hears at its end that others did not."""
    alone = how == 'before the inner block'
    catching = {'the first': [0], 'the odd': [1], 'all': range(comm.size), 'none': []}[catches]
    error: Exception | None = None
    try:
        with comm.together('outer'):
            try:
                FAILING[how](comm)
                if alone:
                    comm.barrier()
            except MnxError:
                if comm.rank not in catching:
                    raise
    except MnxError as e:
        error = e
    failed = comm.allgather_obj(error is not None)
    assert failed == [alone or catches != 'all'] * comm.size


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(120)
@pytest.mark.parametrize('depth', [1, 2, 3])
def test_ranks_that_fail_at_different_depths(comm: Communicator, depth: int) -> None:
    """All catch what reaches them outside of all blocks, and go on together."""

    def enter(left: int) -> None:
        with comm.together(f'block {left}'):
            _fail_if(left == depth and comm.rank == 1)
            if left > 1:
                enter(left - 1)

    for _ in range(2):
        with pytest.raises(ArgumentError, match='as planned'):
            enter(3)
        assert comm.allgather_obj(comm.rank) == list(range(comm.size))


@pytest.mark.parametrize('kind', [dict.fromkeys, set], ids=['dict', 'set'])
def test_what_has_no_order_is_not_given_to_ranks(comm: Communicator, kind: Any) -> None:
    objs = kind(range(comm.size)) if comm.rank == 0 else [None] * comm.size
    for call in (comm.scatter_obj, comm.alltoall_obj):
        with pytest.raises(ArgumentError, match='needs a sequence'):
            call(objs)
