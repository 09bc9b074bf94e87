"""Messages from one rank to another: a frame, and behind it what is too long for it.

    frame   lead | table | data           at most 16 KiB, one MPI message; short arrays are inside
    then    [table]  array 1  array 2 ... of long messages, straight from and into their memory,
                                          also on a GPU

    lead    count | inline? | header      count: -1 for a bare array, n for a tuple of n
    table   a header for each array of a tuple

A short array is the common case in a model that is cut over processes, and what it takes is
latency. So the lead of a dtype and shape is made once, and found again by a dict on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from mnx.arrays import Array, as_bytes, empty_at, flat, is_array, on_gpu, sendable
from mnx.communicators import headers
from mnx.transports.base import FRAME_BYTES, Transport

LEAD_WORDS = 2 + headers.WORDS
LEAD_BYTES = 8 * LEAD_WORDS
INLINE_BYTES = FRAME_BYTES - LEAD_BYTES
BARE = -1
KEPT = 1000  # leads; more kinds of arrays than that are no pattern worth remembering

Kind = tuple[np.dtype[Any], tuple[int, ...]]


class Frame:
    """Memory for one received frame, and views of it as the arrays of the leads that came."""

    def __init__(self) -> None:
        self.memory = bytearray(FRAME_BYTES)
        self.lead = memoryview(self.memory)[:LEAD_BYTES]
        self.views: dict[bytes, Array] = {}


class PointToPoint:
    """Sends and receives arrays over a transport.

    Attributes
    ----------
    sent, received : defaultdict of int
        Messages by the other rank and tag. MPI keeps their order, so both ends count alike.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.sent: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.received: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._leads: dict[Kind, bytes] = {}
        self._long: dict[bytes, Kind] = {}  # leads of arrays that do not fit into a frame
        self._frames: list[Frame] = []  # more than one if several threads receive

    def send(self, data: Array | Sequence[Array], dest: int, tag: int) -> None:
        """Send an array, or a sequence of arrays of any dtypes."""
        if type(data) is ndarray:
            lead = self._leads.get((data.dtype, data.shape))
            if lead is not None:
                if data.nbytes <= INLINE_BYTES:
                    self._transport.send_frame(lead + data.tobytes(), dest, tag)
                else:
                    self._transport.send_frame(lead, dest, tag)
                    self._transport.send(as_bytes(np.ascontiguousarray(data)), dest, tag)
                self.sent[dest, tag] += 1
                return
        bare = is_array(data) or not isinstance(data, Iterable)
        arrays = [sendable(x, 'send') for x in ([data] if bare else data)]
        self._send(arrays, BARE if bare else len(arrays), dest, tag)
        self.sent[dest, tag] += 1

    def recv(self, source: int, tag: int, status: Any = None) -> Array | tuple[Array, ...]:
        """Receive what `send` sent: an array, or a tuple if it was a sequence."""
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = Frame()
        try:
            source, tag = self._transport.recv_frame(frame.memory, source, tag, status)
            lead = frame.lead.tobytes()
            view = frame.views.get(lead)
            found = self._recv(frame, lead, source, tag) if view is None else view.copy()
            self.received[source, tag] += 1
            return found
        finally:
            self._frames.append(frame)

    def _send(self, arrays: Sequence[Array], count: int, dest: int, tag: int) -> None:
        table = headers.headers(arrays).tobytes()
        bare, nbytes = count == BARE, sum(x.nbytes for x in arrays)
        inline = nbytes + (0 if bare else len(table)) <= INLINE_BYTES
        lead = np.array([count, inline], np.int64).tobytes()
        lead += table if bare else bytes(LEAD_BYTES - len(lead))
        if bare and not on_gpu(arrays[0]):
            _remember(self._leads, (arrays[0].dtype, arrays[0].shape), lead)
        if inline:
            body = b''.join(x.tobytes() for x in arrays)
            self._transport.send_frame(lead + (b'' if bare else table) + body, dest, tag)
            return
        self._transport.send_frame(lead, dest, tag)
        if not bare:
            self._transport.send(np.frombuffer(table, np.uint8), dest, tag)
        for x in arrays:
            self._transport.send(flat(x).view(np.uint8), dest, tag)

    def _recv(self, frame: Frame, lead: bytes, source: int, tag: int) -> Array | tuple[Array, ...]:
        """Receive an array of a new kind, a tuple, or what is behind the frame."""
        if lead in self._long:
            return self._recv_long(*self._long[lead], source, tag)
        count, inline, *header = np.frombuffer(lead, np.int64).tolist()
        body = np.frombuffer(frame.memory, np.uint8)[LEAD_BYTES:]
        length = 8 * headers.WORDS * count
        if count == BARE:
            table = np.array([header], np.int64)
        elif inline:
            table, body = body[:length].view(np.int64).reshape(-1, headers.WORDS), body[length:]
        else:
            table = np.empty((count, headers.WORDS), np.int64)
            self._transport.recv(as_bytes(table), source, tag)
        if not inline:
            found = self._recv_each(table, source, tag)
        else:
            found = tuple(x.copy() for x in headers.cut(body, table))
        if count == BARE and not on_gpu(found[0]):
            self._learn(frame, lead, found[0])
        return found[0] if count == BARE else found

    def _learn(self, frame: Frame, lead: bytes, x: Array) -> None:
        if x.nbytes <= INLINE_BYTES:
            view: Array = np.ndarray(x.shape, x.dtype, frame.memory, LEAD_BYTES)
            _remember(frame.views, lead, view)
        else:
            _remember(self._long, lead, (x.dtype, x.shape))

    def _recv_long(
        self, dtype: np.dtype[Any], shape: tuple[int, ...], source: int, tag: int
    ) -> Array:
        x = empty_at('cpu', shape, dtype)
        self._transport.recv(as_bytes(x), source, tag)
        return x

    def _recv_each(self, table: Array, source: int, tag: int) -> tuple[Array, ...]:
        found = tuple(headers.allocate(words) for words in table)
        for x in found:
            self._transport.recv(as_bytes(x), source, tag)
        return found


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= KEPT:
        known.clear()
    known[key] = value
