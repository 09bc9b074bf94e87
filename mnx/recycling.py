"""Memory for large results, used again when the last array on it is gone.

A new array of megabytes costs a page fault for every 4 KiB when it is first written: as long as
receiving it. The system gets the memory of a freed one back at once, so the next one pays anew::

    received = comm.recv(0)      a block of the pool        or a new one
    del received                 the block is back
    received = comm.recv(0)      the same block, without page faults

Every array and view on a block refers to it, so its count of references tells whether it is in use.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from sys import getrefcount
from typing import Any

import numpy as np

Memory = np.ndarray[Any, np.dtype[np.uint8]]

FROM_BYTES = 2 * 1024 * 1024  # what is shorter comes from malloc's own pool, and faster
KEPT_BYTES = 256 * 1024 * 1024  # at most, per process

_blocks: list[Memory] = []  # in use or not, the oldest first


def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an uninitialised array, as `numpy.empty`, on recycled memory if it is large."""
    nbytes = math.prod(shape) * dtype.itemsize
    if not (FROM_BYTES <= nbytes <= KEPT_BYTES and _COUNTS_HOLD):
        return np.empty(shape, dtype)
    memory = _unused(nbytes)
    if memory is None:
        memory = _new(nbytes)
    return memory.view(dtype).reshape(shape)


def _unused(nbytes: int) -> Memory | None:
    """Return a block that nobody refers to, if there is one.

    Two threads never get the same: who looks at a block refers to it, which the other one counts.
    """
    for i in range(len(_blocks) - 1, -1, -1):
        try:
            memory = _blocks[i]
        except IndexError:  # another thread has let go of some
            continue
        if memory.nbytes == nbytes and getrefcount(memory) == _OF_NOBODY:
            return memory
    return None


def _references_of_nobody() -> int:
    """Return the count that `_unused` finds for a block that only the list has."""
    blocks = [np.empty(0, np.uint8)]
    memory = blocks[0]
    return getrefcount(memory)


# a tracer that holds the function's variables counts now, but not later: what is in use would seem
# to be nobody's
_OF_NOBODY = min(3, _references_of_nobody())
_COUNTS_HOLD = getattr(sys, '_is_gil_enabled', lambda: True)()  # not where threads run at once


def _new(nbytes: int) -> Memory:
    """Return a new block, and let go of the oldest ones if there are too many."""
    memory = np.empty(nbytes, np.uint8)
    _blocks.append(memory)
    while sum(block.nbytes for block in _blocks[:]) > KEPT_BYTES:
        with contextlib.suppress(IndexError):
            del _blocks[0]
    return memory
