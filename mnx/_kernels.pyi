from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mnx.arrays import Array

ROOM: int
ROW: int

def alike(arrays: list[Array], shapes: list[tuple[int, ...]], dtypes: list[object], /) -> bool: ...
def gather(arrays: list[Array], flat: Array, /) -> bool: ...
def scatter(flat: Array, arrays: list[Array], /) -> bool: ...
def add(parts: list[Array], total: Array, divisor: float, twin: Array | None, /) -> bool: ...
def kind(x: object, /) -> tuple[np.dtype[Any], tuple[int, ...]] | Literal[False]: ...
def as_bytes(x: object, /) -> Array: ...
def addresses(arrays: list[Array], dtype: np.dtype[Any], found: Array, writes: bool, /) -> bool: ...
def on_unused(
    blocks: list[Array], offset: int, dtype: np.dtype[Any], shape: Sequence[int], /
) -> Array | Literal[False] | None: ...
def largest(rows: Array, rank: int, turn: int, words: Array, looks: int, /) -> bool: ...
def reach(pid: int, address: int, array: Array, writes: bool, /) -> int: ...
def sum_share(
    pids: Array,
    rank: int,
    places: Array,
    pieces: Array,
    chunks: Array,
    for_all: bool,
    buffers: Array,
    divisor: float,
    /,
) -> tuple[int, int] | Literal[False]: ...
def sum_in_window(
    slots: Array,
    rank: int,
    looks: int,
    progress: Array,
    places: Array,
    borders: Array,
    chunk: int,
    itemsize: int,
    divisor: float,
    /,
) -> bool: ...
