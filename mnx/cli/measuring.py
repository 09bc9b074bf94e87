"""Sizes, times and bandwidths, as nccl-tests counts them.

References: nccl-tests, doc/PERFORMANCE.md: the bus bandwidth of an all-reduce over n ranks is
2 * (n - 1) / n times its algorithm bandwidth, since that many bytes must pass each rank's link.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from mnx.errors import ArgumentError

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30}


def parse_size(text: str) -> int:
    """Return a number of bytes.

    >>> parse_size('8'), parse_size('4K'), parse_size('1M')
    (8, 4096, 1048576)
    """
    match = re.fullmatch(r'(\d+)([KMG]?)', text.strip().upper().removesuffix('B'))
    if match is None or int(match[1]) == 0:
        raise ArgumentError(f'A size is a number of bytes such as 8, 64K or 16M, but got {text!r}.')
    return int(match[1]) * _UNITS[match[2]]


def sizes(first: int, last: int, factor: int, itemsize: int, step: int | None = None) -> list[int]:
    """Return sizes from `first` to `last` bytes.

    Each is `factor` times the one before, or `step` more if that is given. Whole numbers of items,
    at least one; none twice.

    >>> sizes(6, 100, 4, 4), sizes(8, 16, 8, 4, step=2)
    ([4, 24, 96], [8, 12, 16])
    """
    if first > last:
        raise ArgumentError(f'The first size ({first} bytes) is larger than the last ({last}).')
    if step is None and factor < 2:
        raise ArgumentError(f'The factor between sizes is at least 2, but got {factor}.')
    found: dict[int, None] = {}
    while first <= last:
        found[max(first // itemsize, 1) * itemsize] = None
        first = first * factor if step is None else first + step
    return list(found)


@dataclass(frozen=True)
class Speed:
    """How fast an all-reduce of `nbytes` over `ranks` ranks was, in `seconds`."""

    nbytes: int
    ranks: int
    seconds: float

    @property
    def algorithm_bandwidth(self) -> float:
        """In GB/s: the length of the array by time."""
        return self.nbytes / self.seconds / 1e9

    @property
    def bus_bandwidth(self) -> float:
        """In GB/s: comparable with the speed of the hardware, whatever the number of ranks."""
        return self.algorithm_bandwidth * 2 * (self.ranks - 1) / self.ranks


def seconds_of(
    call: Callable[[], object], barrier: Callable[[], object], repeats: int, warmup: int
) -> float:
    """Return this rank's mean time of one `call`, many in a row. Collective."""
    for _ in range(warmup):
        call()
    barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
