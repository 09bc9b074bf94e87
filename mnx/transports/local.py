"""One process alone: no MPI needed. Every collective is the identity or a copy."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnx.arrays import Array, as_bytes, module_of
from mnx.errors import ArgumentError
from mnx.transports.base import ANY_TAG, Channels, Transport


class Done:
    """A collective that ended before it was started."""

    def test(self) -> bool:
        return True

    def wait(self) -> None:
        return None


class LocalWindow:
    """Memory that a process shares with nobody."""

    def __init__(self, nbytes: int) -> None:
        self.slots = [np.empty(nbytes, np.uint8)]
        self.places: Array | None = None
        self.looks = 1

    def arrive(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


class OwnMail:
    """Messages that a rank sends to itself: of any length, since nobody has to wait for them."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._messages: deque[tuple[int, bytes]] = deque()

    def put(self, data: bytes, tag: int) -> None:
        """Keep `data`."""
        self._messages.append((tag, data))

    def find(self, tag: int) -> tuple[int, bytes] | None:
        """Take out the oldest message with `tag` (or any, for ANY_TAG): its tag, its bytes."""
        for message in self._messages:
            if tag in (ANY_TAG, message[0]):
                self._messages.remove(message)
                return message
        return None

    def take(self, tag: int) -> tuple[int, bytes]:
        """As `find`, but a missing message is an error: waiting for it would last for ever."""
        message = self.find(tag)
        if message is None:
            raise ArgumentError(
                f'recv: rank {self._rank} waits for a message from itself with tag {tag} '
                'but has sent none. Send before you receive, or check source and tag.'
            )
        return message

    def fill(self, buffer: Array, tag: int) -> None:
        """Take a message into `buffer`, which is as long."""
        received = np.frombuffer(self.take(tag)[1], np.uint8)
        as_bytes(buffer)[:] = module_of(buffer).asarray(received)


class LocalTransport(Transport):
    """The transport of a group of one."""

    rank = 0
    size = 1
    max_tag = 2**31 - 1
    any_source = -1

    def __init__(self) -> None:
        self._mail = OwnMail(0)

    def send(self, buffer: Array, dest: int, tag: int) -> None:
        self._mail.put(buffer.tobytes(), tag)

    def recv(self, buffer: Array, source: int, tag: int) -> None:
        self._mail.fill(buffer, tag)

    def send_frame(self, frame: bytes, dest: int, tag: int) -> None:
        self._mail.put(frame, tag)

    def recv_frame(
        self, memory: bytearray, source: int, tag: int, status: Any = None
    ) -> tuple[int, int]:
        tag, frame = self._mail.take(tag)
        memory[: len(frame)] = frame
        return self.rank, tag

    def broadcast(self, buffer: Array, root: int) -> None:
        pass

    def reduce(self, buffer: Array, root: int, op: str = 'sum', into: Array | None = None) -> None:
        if into is not None:
            into[:] = buffer

    def all_reduce(self, buffer: Array, op: str = 'sum', into: Array | None = None) -> None:
        if into is not None:
            into[:] = buffer

    def start_all_reduce(self, buffer: Array, op: str = 'sum') -> Done:
        return Done()

    def reduce_scatter(
        self, sent: Array, received: Array, counts: Sequence[int], op: str = 'sum'
    ) -> None:
        received[:] = sent

    def gather(self, sent: Array, received: Sequence[Array] | None, root: int) -> None:
        if received is not None:
            received[0][:] = sent

    def scatter(self, sent: Sequence[Array] | None, received: Array, root: int) -> None:
        if sent is not None:
            received[:] = sent[0]

    def all_gather(self, sent: Array, received: Array, counts: Sequence[int]) -> None:
        received[:] = sent

    def all_to_all(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        received[0][:] = sent[0]

    def split(self, color: int, key: int) -> LocalTransport:
        return LocalTransport()

    def allocate_shared(self, nbytes: int) -> LocalWindow:
        return LocalWindow(nbytes)

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


class LocalChannels(Channels):
    """The channels of a process that is alone."""

    mpi_comm = None

    def __init__(self) -> None:
        self.arrays = self.control = LocalTransport()
        self.mail = LocalTransport()
        self.hosts = (socket.gethostname(),)

    def emergency(self) -> None:
        return None

    def split(self, color: int | None, key: int) -> LocalChannels | None:
        return None if color is None else LocalChannels()

    def close(self) -> None:
        self.arrays.close()
        self.mail.close()
