"""What is made at first use by all ranks together."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.lazily import made_together


class Owner:
    def __init__(self, wait: threading.Barrier) -> None:
        self.wait = wait

    @made_together
    def made(self) -> object:
        """Made while another owner makes its own."""
        self.wait.wait(timeout=20)
        return object()


def test_owners_do_not_wait_for_one_another() -> None:
    owners = [Owner(threading.Barrier(2))]
    owners.append(Owner(owners[0].wait))
    threads = [threading.Thread(target=lambda o=owner: o.made) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all('made' in vars(owner) for owner in owners)
    assert owners[0].made is owners[0].made is not owners[1].made
    assert isinstance(Owner.made, made_together)


def test_a_communicator_for_each_thread(comm: Communicator) -> None:
    """Each rank makes the groups of its communicators in another order."""
    ours = [comm.split(0, comm.rank) for _ in range(2)]
    order = ours if comm.rank % 2 else ours[::-1]
    sums: list[float] = []

    def use(mine: Communicator) -> None:
        sums.append(mine.groups.intra.size)
        sums.append(float(mine.allreduce(np.ones(1))[0]))

    threads = [threading.Thread(target=use, args=(mine,)) for mine in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == pytest.approx([comm.size] * 4)
