"""Memory that all ranks of a node see, and how they wait for one another there.

With `mpi`, which imports it late, and `mpi_emergency` the only module that imports mpi4py.

References: MPI 4.1, section 12.2.3 (allocation) and 12.7 (the memory model: what is stored before
another store is seen with it, if the window is synchronised in between on both sides).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from mnx import kernels
from mnx.arrays import Array, address_of
from mnx.transports.waiting import waits

_CACHE_LINE = 64
_FILES = '/dev/shm'  # memory of this node only
_WITHOUT_FILE: Any = {'trackfd': False} if sys.version_info >= (3, 13) else {}
_LOOKS_IN_C = 200  # for a rank that is late: some microseconds
_YIELDS_IN_C = 20  # where ranks share cores
_LOOKS = 20  # before another program gets the core
_MANY_LOOKS = 2000  # some milliseconds, from then on this rank's other threads get on, too
_PAUSE_S = 50e-6


class _Patience:
    """How the ranks of `comm`, all on one node, wait for what others write. Collective to make."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        # where a core has several ranks, the one that looks keeps another from writing
        is_crowded = comm.size > len(set().union(*comm.allgather(_own_cores())))
        self._looks = 1 if is_crowded else _LOOKS
        self.looks_in_c = -_YIELDS_IN_C if is_crowded else _LOOKS_IN_C

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Return when it is; it has just not been."""
        for looks in itertools.count(1):
            self._comm.Iprobe(MPI.ANY_SOURCE, 0)  # MPI makes progress inside of its calls only
            if is_so():
                return
            if looks > _MANY_LOOKS:
                time.sleep(_PAUSE_S)
            elif looks >= self._looks:
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
    before all are in it. `kernels.sum_in_window` does so, too.
    """

    @waits
    def __init__(self, comm: MPI.Comm, nbytes: int) -> None:
        self._patience = _Patience(comm)
        self.looks = self._patience.looks_in_c
        self._window = MPI.Win.Allocate_shared(
            _CACHE_LINE + nbytes, 1, comm=cast('MPI.Intracomm', comm)
        )
        self._window.Lock_all(MPI.MODE_NOCHECK)
        found: list[Any] = [self._window.Shared_query(rank)[0] for rank in range(comm.size)]
        parts = [np.frombuffer(memory, np.uint8) for memory in found]
        self.slots = [part[_CACHE_LINE:] for part in parts]
        self._turns = [part[:8].data.cast('q') for part in parts]
        places = np.array(list(map(address_of, self.slots)), np.int64)
        self.places = places if _kernel_works() else None
        self._rank = comm.rank
        self._turns[self._rank][0] = 0
        self._window.Sync()
        comm.Barrier()
        self._window.Sync()

    def arrive(self) -> None:
        self._window.Sync()
        self._turns[self._rank][0] += 1

    @waits
    def wait(self) -> None:
        for turn in self._turns:
            if not self._has_come(turn):
                self._patience.wait_until(functools.partial(self._has_come, turn))
        self._window.Sync()

    def _has_come(self, turn: memoryview[int]) -> bool:
        return turn[0] >= self._turns[self._rank][0]

    @waits
    def close(self) -> None:
        self.slots, self._turns, self.places = [], [], None
        self._window.Unlock_all()
        self._window.Free()


class Board:
    """A few words of each rank, for all to read: their largest without a message.

        rank 0   [turn | words of even turns | words of odd turns]    each writes its row, then its
        rank 1   [turn | words of even turns | words of odd turns]    turn, and reads the others'

    Two places for words are enough: who comes to turn k has seen all others at turn k-1, so nobody
    reads the words of turn k-2 any more.
    """

    ROOM = kernels.ROOM  # words that a rank can bring

    def __init__(self, comm: MPI.Comm, memory: mmap.mmap) -> None:
        self._rank = comm.rank
        self._rows = np.frombuffer(memory, np.int64).reshape(comm.size, kernels.ROW)
        self._own = self._rows[comm.rank].data
        self._patience = _Patience(comm)

    def find_largest(self, words: Array) -> None:
        """Replace at most `ROOM` words by the largest of all ranks, each by its own. Collective."""
        turn = self._own[0] + 1  # not counted here: an error may come before the row is written
        found = self._rows, self._rank, turn, words
        if not kernels.largest(*found, self._patience.looks_in_c):
            self._patience.wait_until(lambda: kernels.largest(*found, 1))


def board_of(comm: MPI.Comm) -> Board | None:
    """Return a new board, if all ranks are on one node and have what it takes. Collective."""
    if not all(comm.allgather(_kernel_works())):
        return None
    memory = _file_of_all(comm, 8 * kernels.ROW * comm.size)
    return None if memory is None else Board(comm, memory)


def _file_of_all(comm: MPI.Comm, nbytes: int) -> mmap.mmap | None:
    """Return memory of zeros that all ranks see; None if any does not see it. Collective.

    Not a window of MPI, which only all ranks together can free: this one is gone with the last
    rank that refers to it.
    """
    path = comm.bcast(f'{_FILES}/mnx_{secrets.token_hex(16)}')
    try:
        memory = _map_file(path, nbytes, new=True) if comm.rank == 0 else None
        comm.Barrier()
        memory = memory if comm.rank == 0 else _map_file(path, nbytes)
        return memory if all(comm.allgather(memory is not None)) else None
    finally:
        if comm.rank == 0:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _map_file(path: str, nbytes: int, *, new: bool = False) -> mmap.mmap | None:
    """Return the memory of a file; None if there is no such folder, file, or so much memory."""
    flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0)
    try:
        file = os.open(path, flags, 0o600)
    except OSError:
        return None
    try:
        if new:
            os.posix_fallocate(file, 0, nbytes)  # an error now, not a signal later
        return mmap.mmap(file, nbytes, **_WITHOUT_FILE)
    except (OSError, ValueError):  # no memory left; then the file is empty
        return None
    finally:
        os.close(file)


def _kernel_works() -> bool:
    """Tell whether there is a kernel, made by a compiler with the instructions that it takes."""
    rows, words = np.zeros((1, kernels.ROW), np.int64), np.zeros(2, np.int64)
    return kernels.largest(rows, 0, 1, words, 1)
