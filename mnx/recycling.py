"""Memory for large results, used again when the last array on it is gone.

A new array of megabytes costs a page fault for every 4 KiB when it is first written: as long as
receiving it. The system gets the memory of a freed one back at once, so the next one pays anew::

    received = comm.recv(0)      a block of the pool        or a new one
    del received                 the block is back
    received = comm.recv(0)      the same block, without page faults

Every array and view on a block refers to it, so its count of references tells whether it is in use.

Arrays begin 16 bytes behind the beginning of a page, where malloc puts large ones, too. So what is
sent and what is received mostly lie alike, and copying takes a sixth less than where they do not.
Lengths are rounded up by an eighth at most, so that batches of other lengths find a block, too.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Sequence
from sys import getrefcount
from typing import Any

import numpy as np

from mnx import kernels

Memory = np.ndarray[Any, np.dtype[np.uint8]]

FROM_BYTES = 256 * 1024  # what is shorter comes from malloc's own pool, and faster
KEPT_BYTES = 256 * 1024 * 1024  # at most, per process

_OFFSET = 16
_HUGE_FROM = 4 * 1024 * 1024  # bytes, from which on NumPy asks for huge pages
_PRIVATE = {'flags': mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, 'MAP_PRIVATE') else {}

_blocks: dict[int, list[Memory]] = {}  # by length; in use or not


def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an uninitialised array, as `numpy.empty`, on recycled memory if it is large."""
    nbytes = int(math.prod(shape)) * dtype.itemsize
    if not (FROM_BYTES <= nbytes <= KEPT_BYTES and _COUNTS_HOLD):
        return np.empty(shape, dtype)
    step = 1 << (nbytes.bit_length() - 4)
    length = -(-nbytes // step) * step
    blocks = _blocks.get(length, [])
    found: Any = kernels.on_unused(blocks, _OFFSET, dtype, shape)
    if found is False:  # no C
        memory = _unused(blocks)
        found = None if memory is None else np.ndarray(shape, dtype, memory, _OFFSET)
    return np.ndarray(shape, dtype, _new(length), _OFFSET) if found is None else found


def _unused(blocks: list[Memory]) -> Memory | None:
    """Return a block that nobody refers to, if there is one.

    Two threads never get the same: who looks at a block refers to it, which the other one counts.
    """
    for memory in blocks:
        if getrefcount(memory) == _OF_NOBODY:
            return memory
    return None


def _references_of_nobody() -> int:
    """Return the count that `_unused` finds for a block that only the list has."""
    for memory in [np.empty(0, np.uint8)]:
        return getrefcount(memory)
    raise AssertionError


# a tracer that holds the function's variables counts now, but not later: what is in use would seem
# to be nobody's
_OF_NOBODY = min(3, _references_of_nobody())
_COUNTS_HOLD = getattr(sys, '_is_gil_enabled', lambda: True)()  # not where threads run at once


def _new(length: int) -> Memory:
    """Return a new block, and let go of the others if there are too many."""
    try:
        memory = _mapped(_OFFSET + length)
    except OSError:  # more mappings than the system allows
        return np.empty(_OFFSET + length, np.uint8)
    if sum(n * len(found) for n, found in list(_blocks.items())) + length > KEPT_BYTES:
        _blocks.clear()
    _blocks.setdefault(length, []).append(memory)
    return memory


def _mapped(length: int) -> Memory:
    pages = mmap.mmap(-1, length, **_PRIVATE)
    if length >= _HUGE_FROM and hasattr(mmap, 'MADV_HUGEPAGE'):
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
