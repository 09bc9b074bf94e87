"""The idx format of MNIST: a big-endian array with its shape in front.

::

    00 00 | type | number of axes | length of each axis ... | elements, last axis fastest
    2 B     1 B    1 B              4 B each

Reference: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits",
section "File formats".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnx.errors import DataError

_DTYPES = {0x08: '>u1', 0x09: '>i1', 0x0B: '>i2', 0x0C: '>i4', 0x0D: '>f4', 0x0E: '>f8'}
_ADVICE = 'Delete it and copy or download it again.'


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array in an idx file, packed with gzip (by its content, not its name) or not.

    Raises
    ------
    DataError
        The file is no idx file, is cut short, or is longer than it says.
    """
    data = path.read_bytes()
    if data[:2] == b'\x1f\x8b':
        data = gunzip(data, str(path))
    return parse_idx(data, str(path))


def gunzip(data: bytes, origin: str) -> bytes:
    """Unpack `data`; `origin` names it in errors."""
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f'read_idx: {origin} is cut short or damaged ({error}). {_ADVICE}'
        ) from None


def parse_idx(data: bytes, origin: str) -> NDArray[Any]:
    """Return the array in the bytes of an idx file, in the machine's byte order."""
    dtype, shape, start = _header(data, origin)
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        wrong = 'is cut short' if len(data) < expected else 'has a tail'
        raise DataError(
            f'read_idx: {origin} {wrong}, expected {expected} bytes for shape {shape} '
            f'but got {len(data)}. {_ADVICE}'
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder('='), copy=False)


def dump_idx(array: NDArray[np.uint8]) -> bytes:
    """Return `array` (uint8, C order) as the bytes of an idx file."""
    shape = struct.pack(f'>{array.ndim}I', *array.shape)
    return bytes([0, 0, 0x08, array.ndim]) + shape + array.tobytes()


def _header(data: bytes, origin: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    if len(data) < 4 or data[:2] != b'\0\0' or data[2] not in _DTYPES:
        raise DataError(
            f'read_idx: {origin} is no idx file, expected the magic number 0000, a known type '
            f'and a number of axes but got {data[:4].hex() or "an empty file"}. {_ADVICE}'
        )
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(
            f'read_idx: {origin} is cut short, expected {start} bytes of header '
            f'but got {len(data)}. {_ADVICE}'
        )
    return np.dtype(_DTYPES[data[2]]), struct.unpack(f'>{data[3]}I', data[4:start]), start
