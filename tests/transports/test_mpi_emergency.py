"""Notices between ranks that need no help of those who wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from mpi4py import MPI

from mnx.communicators import Communicator
from mnx.transports.mpi_emergency import MpiEmergency


@pytest.fixture
def channel(comm: Communicator) -> Iterator[MpiEmergency]:
    made = MpiEmergency()
    yield made
    comm.barrier()
    made._comm.Free()


def until_all_came(poll: Callable[[], list[bytes]], count: int) -> list[bytes]:
    """Return what comes; a hang ends by the limit of the test."""
    came = poll()
    while len(came) < count:
        time.sleep(0.001)
        came += poll()
    return sorted(came)


def test_every_other_rank_is_told_once(comm: Communicator, channel: MpiEmergency) -> None:
    channel.notify(b'%d' % comm.rank * 5)
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    came = until_all_came(channel.poll, len(others))
    assert came == sorted(b'%d' % rank * 5 for rank in others)
    comm.barrier()
    assert channel.poll() == []


def test_notices_of_any_length_keep_their_order(comm: Communicator, channel: MpiEmergency) -> None:
    sent = [b'', b'short', bytes(range(256)) * 400]
    for notice in sent:
        channel.notify(notice)
    came = until_all_came(channel.poll, len(sent) * (comm.size - 1))
    assert came == sorted(sent * (comm.size - 1))


def test_ranks_in_a_collective_neither_help_nor_hear(
    comm: Communicator, channel: MpiEmergency
) -> None:
    if comm.rank == 0:
        channel.notify(b'from 0')
    total = comm.allreduce(np.full(3, comm.rank))
    np.testing.assert_array_equal(total, [sum(range(comm.size))] * 3)
    if comm.rank:
        assert until_all_came(channel.poll, 1) == [b'from 0']


def test_the_second_line_is_apart(comm: Communicator, channel: MpiEmergency) -> None:
    second = channel.second_line()
    assert second is not None
    assert (second.job_rank, second.job_size) == (comm.rank, comm.size)
    second.notify(b'second', range(comm.size))
    channel.notify(b'first')
    others = comm.size - 1
    assert until_all_came(channel.poll, others) == [b'first'] * others
    assert until_all_came(second.poll, others) == [b'second'] * others
    comm.barrier()


def test_the_barrier_of_the_second_line_waits_for_all(
    comm: Communicator, channel: MpiEmergency
) -> None:
    second = channel.second_line()
    assert second is not None
    if comm.rank == comm.size - 1:
        comm.mpi_comm.Barrier()
        second.start_barrier().wait()
        return
    pending = second.start_barrier()
    assert not pending.test()
    comm.mpi_comm.Barrier()
    pending.wait()


def test_some_ranks_alone_register_nothing(comm: Communicator) -> None:
    from mnx.transports import emergency, mpi_emergency

    before = emergency.current()
    mpi_emergency.register_once(MPI.COMM_SELF)
    assert emergency.current() is before
