"""Python objects as flat byte buffers, so that they travel as arrays do.

The arrays inside an object are not copied into the pickle (protocol 5, out-of-band buffers):

    number of buffers | length of the pickle, of buffer 1, 2, ... | pickle | buffer 1 | buffer 2 ...
       one int64                     int64 each                    bytes     bytes
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from mnx.arrays import Array
from mnx.transports.base import Transport

_ALIGN = 16


def dumps(obj: object) -> Array:
    """Return `obj` as one flat uint8 array."""
    outside: list[pickle.PickleBuffer] = []
    parts = [np.frombuffer(pickle.dumps(obj, protocol=5, buffer_callback=outside.append), np.uint8)]
    parts += [np.frombuffer(buffer.raw(), np.uint8) for buffer in outside]
    head = np.array([len(outside), *(part.size for part in parts)], np.int64).view(np.uint8)
    return np.concatenate([piece for part in (head, *parts) for piece in _aligned(part)])


def loads(buffer: Array) -> Any:
    """Return the object in `buffer`; its arrays are views of it, so `buffer` is given away."""
    count = int(buffer[:8].view(np.int64)[0])
    head = 8 * (count + 2)
    sizes = buffer[8:head].view(np.int64)
    at = head + -head % _ALIGN
    parts = []
    for size in sizes.tolist():
        parts.append(buffer[at : at + size])
        at += size + -size % _ALIGN
    return pickle.loads(parts[0], buffers=parts[1:])


def all_gather(transport: Transport, obj: object) -> list[Any]:
    """Return every rank's `obj`, in rank order. Collective."""
    return [loads(part) for part in all_gather_bytes(transport, dumps(obj))]


def all_gather_bytes(transport: Transport, buffer: Array) -> list[Array]:
    """Return every rank's `buffer` of bytes, of any length. Collective."""
    sizes = np.empty(transport.size, np.int64)
    transport.all_gather(np.array([buffer.size], np.int64), sizes, [1] * transport.size)
    received = np.empty(int(sizes.sum()), np.uint8)
    transport.all_gather(buffer, received, sizes.tolist())
    return np.split(received, np.cumsum(sizes)[:-1])


def _aligned(part: Array) -> tuple[Array, Array]:
    return part, np.zeros(-part.size % _ALIGN, np.uint8)
