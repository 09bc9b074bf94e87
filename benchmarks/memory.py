"""How much memory a candidate holds: the growth of this process while it is made and first used.

Counted are the private pages of a process and its share of those it shares (Linux: ``Pss_Anon``
and ``Pss_Shmem`` in ``/proc/self/smaps_rollup``): a page in a shared window of two ranks counts
half for each, so that the ranks' numbers add up to what the machine has lost.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI
from timing import Candidate

ROLLUP = Path('/proc/self/smaps_rollup')


def made_and_weighed(make: Callable[[], Candidate]) -> tuple[Candidate, float | None]:
    """Return the candidate and the bytes that it holds, the mean over the ranks. Collective.

    It has run twice then: buffers are allocated at first use. None where the system cannot tell.
    """
    before = held()
    run = make()
    run()
    run()
    after = held()
    if before is None or after is None:
        return run, None
    world = MPI.COMM_WORLD
    return run, world.allreduce(after - before, MPI.SUM) / world.size


def held() -> int | None:
    """Return the bytes that this process holds now, without what has been freed. Collective."""
    if not ROLLUP.exists():
        return None
    gc.collect()
    _give_back()
    MPI.COMM_WORLD.Barrier()  # a page is shared by those who have touched it
    found = re.findall(r'^Pss_(?:Anon|Shmem):\s*(\d+) kB', ROLLUP.read_text(), re.MULTILINE)
    MPI.COMM_WORLD.Barrier()
    return sum(map(int, found)) * 1024


def _give_back() -> None:
    """Return freed memory to the system, or it would be counted as held."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc only
    if trim is not None:
        trim(0)
