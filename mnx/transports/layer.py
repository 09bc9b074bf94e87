"""What a transport on top of another one shares: all that it does not do itself, the other does.

::

    nccl          arrays on GPUs, by NCCL              what NCCL cannot: one layer down
    host_staged   arrays on GPUs, through host memory  arrays on the host: one layer down
    mpi           arrays on the host
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mnx.arrays import Array
from mnx.transports.base import Channels, Pending, SharedWindow, Transport
from mnx.transports.emergency import EmergencyChannel


class Layer(Transport):
    """Hands every call to the transport below, which it owns."""

    def __init__(self, below: Transport) -> None:
        self._below = below
        self.rank, self.size = below.rank, below.size
        self.max_tag, self.any_source = below.max_tag, below.any_source

    def send(self, buffer: Array, dest: int, tag: int) -> None:
        self._below.send(buffer, dest, tag)

    def recv(self, buffer: Array, source: int, tag: int) -> None:
        self._below.recv(buffer, source, tag)

    def send_frame(self, frame: bytes, dest: int, tag: int) -> None:
        self._below.send_frame(frame, dest, tag)

    def recv_frame(
        self, memory: bytearray, source: int, tag: int, status: Any = None
    ) -> tuple[int, int]:
        return self._below.recv_frame(memory, source, tag, status)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._below.broadcast(buffer, root)

    def reduce(self, buffer: Array, root: int, op: str = 'sum', into: Array | None = None) -> None:
        self._below.reduce(buffer, root, op, into)

    def all_reduce(self, buffer: Array, op: str = 'sum', into: Array | None = None) -> None:
        self._below.all_reduce(buffer, op, into)

    def find_largest(self, words: Array) -> None:
        self._below.find_largest(words)

    def start_all_reduce(self, buffer: Array, op: str = 'sum') -> Pending:
        return self._below.start_all_reduce(buffer, op)

    def reduce_scatter(
        self, sent: Array, received: Array, counts: Sequence[int], op: str = 'sum'
    ) -> None:
        self._below.reduce_scatter(sent, received, counts, op)

    def gather(self, sent: Array, received: Sequence[Array] | None, root: int) -> None:
        self._below.gather(sent, received, root)

    def scatter(self, sent: Sequence[Array] | None, received: Array, root: int) -> None:
        self._below.scatter(sent, received, root)

    def all_gather(self, sent: Array, received: Array, counts: Sequence[int]) -> None:
        self._below.all_gather(sent, received, counts)

    def all_to_all(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        self._below.all_to_all(sent, received)

    def split(self, color: int, key: int) -> Transport:
        return type(self)(self._below.split(color, key))

    def allocate_shared(self, nbytes: int) -> SharedWindow:
        return self._below.allocate_shared(nbytes)

    def barrier(self) -> None:
        self._below.barrier()

    def close(self) -> None:
        self._below.close()


class LayeredChannels(Channels):
    """Other channels, with a layer on top of the one that carries arrays.

    Parameters
    ----------
    channels : Channels
        Owned from now on.
    layer : callable
        Makes the new transport from the one below.
    """

    def __init__(self, channels: Channels, layer: Callable[[Transport], Transport]) -> None:
        self._channels, self._layer = channels, layer
        self.arrays = layer(channels.arrays)
        self.control, self.mail = channels.control, channels.mail
        self.hosts, self.mpi_comm = channels.hosts, channels.mpi_comm

    def emergency(self) -> EmergencyChannel | None:
        return self._channels.emergency()

    def split(self, color: int | None, key: int) -> LayeredChannels | None:
        part = self._channels.split(color, key)
        return None if part is None else LayeredChannels(part, self._layer)

    def close(self) -> None:
        self.arrays.close()  # the transport below ignores its second `close`
        self._channels.close()
