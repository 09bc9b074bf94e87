"""Messages from one rank to another: a header, and the arrays behind it.

A message of up to 64 KiB is one MPI message, a longer one is a header and then each array by
itself, straight from and into its own memory::

    frame     count | inline? | header 1 | header 2 | ...  [ bytes 1 | bytes 2 | ... ]
    count     -1 for a bare array, n for a tuple of n
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mnx.arrays import Array, as_bytes, flat
from mnx.communicators import headers
from mnx.transports.base import Message, Transport

INLINE_BYTES = 64 * 1024
_FRAME_WORDS = 2
BARE = -1


def send(transport: Transport, arrays: Sequence[Array], count: int, dest: int, tag: int) -> None:
    """Send contiguous `arrays`; `count` is BARE or their number."""
    inline = sum(x.nbytes for x in arrays) <= INLINE_BYTES
    lead = np.array([count, inline], np.int64)
    frame = np.concatenate([lead, headers.headers(arrays).reshape(-1)]).view(np.uint8)
    if inline:
        transport.send(np.concatenate([frame, *map(as_bytes, arrays)]), dest, tag)
        return
    transport.send(frame, dest, tag)
    for x in arrays:
        transport.send(flat(x).view(np.uint8), dest, tag)


def recv(
    transport: Transport, source: int, tag: int, status: Any = None
) -> tuple[Array, ...] | Array:
    """Receive what `send` sent: an array if `count` was BARE, else a tuple."""
    message = transport.recv_message(source, tag, status)
    lead = 8 * _FRAME_WORDS
    count, inline = message.buffer[:lead].view(np.int64).tolist()
    body = lead + 8 * headers.WORDS * abs(count)
    table = message.buffer[lead:body].view(np.int64).reshape(-1, headers.WORDS)
    found = (
        headers.cut(message.buffer[body:], table)
        if inline
        else _recv_each(transport, message, table)
    )
    return found[0] if count == BARE else found


def _recv_each(transport: Transport, message: Message, table: Array) -> tuple[Array, ...]:
    found = tuple(headers.allocate(words) for words in table)
    for x in found:
        transport.recv(as_bytes(x), message.source, message.tag)
    return found
