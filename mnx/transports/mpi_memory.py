"""Memory that MPI lets all ranks of a node see, and how they wait for one another there.

With `mpi`, which imports it late, and `mpi_emergency` the only module that imports mpi4py.

References: MPI 4.1, section 12.2.3 (allocation) and 12.7 (the memory model: what is stored before
another store is seen with it, if the window is synchronised in between on both sides).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from mnx import kernels
from mnx.arrays import Array
from mnx.transports.waiting import waits

_CACHE_LINE = 64
_LOOKS_IN_C = 200  # for a rank that is late: some microseconds
_LOOKS = 20  # before another program gets the core


class _Patience:
    """How the ranks of `comm`, all on one node, wait for what others write. Collective to make."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        # where a core has several ranks, the one that looks keeps another from writing
        self.is_crowded = comm.size > len(set().union(*comm.allgather(_own_cores())))
        self._looks = 1 if self.is_crowded else _LOOKS

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Return when it is; it has just not been."""
        for looks in itertools.count(1):
            self._comm.Iprobe(MPI.ANY_SOURCE, 0)  # MPI makes progress inside of its calls only
            if is_so():
                return
            if looks >= self._looks:
                os.sched_yield()


def _own_cores() -> set[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, 'sched_getaffinity'):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


class MpiSharedWindow:
    """A shared window of MPI: each rank's slot lies in memory that all of them map.

    Before each slot is the number of turns at which its rank has arrived, in a cache line of its
    own. Ranks look at these numbers rather than call a barrier of MPI, which none can leave
    before all are in it.
    """

    @waits
    def __init__(self, comm: MPI.Comm, nbytes: int) -> None:
        self._patience = _Patience(comm)
        self._window = _allocate(comm, _CACHE_LINE + nbytes)
        places = [_seen(self._window, rank) for rank in range(comm.size)]
        self.slots = [place[_CACHE_LINE:] for place in places]
        self._turns = [place[:8].data.cast('q') for place in places]
        self._rank, self._turn = comm.rank, 0
        self._turns[self._rank][0] = 0
        _synchronize(self._window, comm)

    def arrive(self) -> None:
        self._turn += 1
        self._window.Sync()
        self._turns[self._rank][0] = self._turn

    @waits
    def wait(self) -> None:
        for turn in self._turns:
            if turn[0] < self._turn:
                self._patience.wait_until(functools.partial(self._has_come, turn))
        self._window.Sync()

    def _has_come(self, turn: memoryview[int]) -> bool:
        return turn[0] >= self._turn

    @waits
    def close(self) -> None:
        self.slots, self._turns = [], []
        _free(self._window)


class Board:
    """A few words of each rank, for all to read: their largest without a message.

        rank 0   [turn | words of even turns | words of odd turns]    each writes its row, then its
        rank 1   [turn | words of even turns | words of odd turns]    turn, and reads the others'

    Two places for words are enough: who comes to turn k has seen all others at turn k-1, so nobody
    reads the words of turn k-2 any more.
    """

    ROW = 88  # words; of _kernels.c
    ROOM = 40  # words that a rank can bring

    def __init__(self, comm: MPI.Comm, window: MPI.Win) -> None:
        self._window, self._rank, self._turn = window, comm.rank, 0
        self._patience = _Patience(comm)
        self._looks = 1 if self._patience.is_crowded else _LOOKS_IN_C
        self._rows = _seen(window, 0).view(np.int64).reshape(comm.size, self.ROW)
        if comm.rank == 0:
            self._rows[...] = 0
        _synchronize(window, comm)

    def find_largest(self, words: Array) -> None:
        """Replace at most `ROOM` words by the largest of all ranks, each by its own. Collective."""
        self._turn = turn = self._turn + 1
        found = self._rows, self._rank, turn, words, self._looks
        if not kernels.largest(*found):
            self._patience.wait_until(lambda: kernels.largest(*found))

    def close(self) -> None:
        """Free the memory. Collective."""
        del self._rows
        _free(self._window)


def board_of(comm: MPI.Comm) -> Board | None:
    """Return a new board, if all ranks are on one node and have what it takes. Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    can = node.size == comm.size and _kernel_works()
    node.Free()
    if not comm.allreduce(can, MPI.LAND):
        return None
    window = None
    try:
        window = _allocate(comm, 8 * Board.ROW * comm.size if comm.rank == 0 else 0)
    except MPI.Exception:  # no memory to share; messages do as well
        can = False
    # where only some have a window, they cannot free it: that takes all
    return Board(comm, window) if comm.allreduce(can, MPI.LAND) and window is not None else None


def _kernel_works() -> bool:
    """Tell whether there is a kernel, made by a compiler with the instructions that it takes."""
    words = np.array([3, -1])
    return kernels.largest(np.zeros((1, Board.ROW), np.int64), 0, 1, words, 1)


def _allocate(comm: MPI.Comm, nbytes: int) -> MPI.Win:
    window = MPI.Win.Allocate_shared(nbytes, 1, comm=cast('MPI.Intracomm', comm))
    window.Lock_all(MPI.MODE_NOCHECK)
    return window


def _seen(window: MPI.Win, rank: int) -> Array:
    """Return the memory that a rank has brought, flat uint8."""
    memory: Any = window.Shared_query(rank)[0]
    return np.frombuffer(memory, np.uint8)


def _synchronize(window: MPI.Win, comm: MPI.Comm) -> None:
    """Let all ranks see what all have written. Collective."""
    window.Sync()
    comm.Barrier()
    window.Sync()


def _free(window: MPI.Win) -> None:
    window.Unlock_all()
    window.Free()
