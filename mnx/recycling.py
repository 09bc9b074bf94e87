"""Memory for large results, used again when the last array on it is gone.

A new array of megabytes costs a page fault for every 4 KiB when it is first written: as long as
receiving it. The system gets the memory of a freed one back at once, so the next one pays anew::

    received = comm.recv(0)      a block of the pool        or a new one
    del received                 the block is back
    received = comm.recv(0)      the same block, without page faults

A block lives as long as any array or view on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Memory = np.ndarray[Any, np.dtype[np.uint8]]

FROM_BYTES = 2 * 1024 * 1024  # what is shorter comes from malloc's own pool, and faster
KEPT_BYTES = 256 * 1024 * 1024  # at most, per process

# Those that nobody uses, the one that was given back last at the end. Each operation on it is one
# of the dict's own, so that it needs no lock: `Block.__del__` may be called anywhere, any time.
_spare: dict[int, Memory] = {}
_numbers = itertools.count()


class Block:
    """Owns memory as long as an array is on it, then gives it to the pool."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._give_back(self._memory)

    _give_back: Callable[[Memory], None]


def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an uninitialised array, as `numpy.empty`, on recycled memory if it is large."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < FROM_BYTES:
        return np.empty(shape, dtype)
    return np.asarray(Block(_take(nbytes))).view(dtype).reshape(shape)


def _take(nbytes: int) -> Memory:
    for number in reversed(list(_spare)):
        memory = _spare.get(number)
        if memory is not None and memory.nbytes == nbytes and _spare.pop(number, None) is not None:
            return memory
    return np.empty(nbytes, np.uint8)


def _give_back(memory: Memory) -> None:
    """Keep `memory`; let go of others, the one that was not needed for longest first."""
    _spare[next(_numbers)] = memory
    while sum(spare.nbytes for spare in list(_spare.values())) > KEPT_BYTES:
        _spare.pop(next(iter(list(_spare)), -1), None)


Block._give_back = staticmethod(_give_back)  # there until the very end of the program
