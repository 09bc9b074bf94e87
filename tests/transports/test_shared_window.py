"""The shared window: what one rank writes before a barrier, all see after it."""

from __future__ import annotations

import numpy as np

from mnx.communicators import Communicator
from mnx.transports.local import LocalTransport


def test_every_rank_sees_every_slot(comm: Communicator) -> None:
    transport = comm.groups.intra
    window = transport.allocate_shared(1000)
    assert [slot.size for slot in window.slots] == [1000] * comm.size
    for turn in range(20):
        window.slots[comm.rank][:] = (comm.rank * 20 + turn) % 251
        window.barrier()
        for rank, slot in enumerate(window.slots):
            assert (slot == (rank * 20 + turn) % 251).all()
        window.barrier()
    window.close()


def test_alone() -> None:
    window = LocalTransport().allocate_shared(16)
    window.slots[0].view(np.int64)[1] = 7
    window.barrier()
    assert window.slots[0].view(np.int64).tolist()[1] == 7
    window.close()
