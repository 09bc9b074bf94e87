"""The shared window: what a rank writes before it arrives, all see who have waited for it."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from mnx.communicators import Communicator
from mnx.transports.local import LocalTransport


def test_every_rank_sees_every_slot(comm: Communicator) -> None:
    transport = comm.groups.intra
    window = transport.allocate_shared(1000)
    assert [slot.size for slot in window.slots] == [1000] * comm.size
    for turn in range(20):
        window.slots[comm.rank][:] = (comm.rank * 20 + turn) % 251
        window.arrive()
        window.wait()
        for rank, slot in enumerate(window.slots):
            assert (slot == (rank * 20 + turn) % 251).all()
        window.arrive()
        window.wait()
    window.close()


def test_who_arrives_does_not_wait(comm: Communicator) -> None:
    window = comm.groups.intra.allocate_shared(8)
    if comm.rank == 0:
        window.slots[0][0] = 1
        window.arrive()
        comm.mpi_comm.Barrier()  # the others come here before they arrive
    else:
        comm.mpi_comm.Barrier()
        window.arrive()
    window.wait()
    assert window.slots[0][0] == 1
    window.close()


def test_messages_move_while_a_rank_waits(comm: Communicator) -> None:
    window = comm.groups.intra.allocate_shared(8)
    large = np.arange(10**6)  # too much for MPI to take it before somebody wants it
    if comm.rank == 0:
        requests = [comm.mpi_comm.Isend(large, dest=rank) for rank in range(1, comm.size)]
        window.arrive()
        window.wait()
        MPI.Request.Waitall(requests)
    else:
        found = np.empty_like(large)
        comm.mpi_comm.Recv(found, source=0)
        assert (found == large).all()
        window.arrive()
        window.wait()
    window.close()


def test_alone() -> None:
    window = LocalTransport().allocate_shared(16)
    window.slots[0].view(np.int64)[1] = 7
    window.arrive()
    window.wait()
    assert window.slots[0].view(np.int64).tolist()[1] == 7
    window.close()
