"""A transport that counts what it carries, around a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mnx.communicators import Communicator
from mnx.communicators.naive import NaiveCommunicator
from mnx.transports.base import Channels, Transport

Log = list[tuple[str, int]]


def counted(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        buffer = args[1 if name == 'all_gather' else 0]  # what is received is the whole
        buffers = buffer if isinstance(buffer, (list, tuple)) else [buffer]
        self.log.append((name, sum(getattr(b, 'nbytes', 0) for b in buffers)))
        return getattr(self.inner, name)(*args, **kwargs)

    return call


class CountingTransport(Transport):
    """Appends the name and the bytes of each call to `log`."""

    def __init__(self, inner: Transport, log: Log) -> None:
        self.inner, self.log = inner, log
        self.rank, self.size = inner.rank, inner.size
        self.max_tag, self.any_source = inner.max_tag, inner.any_source

    for _name in Transport.__abstractmethods__:
        locals()[_name] = counted(_name)


class CountingChannels(Channels):
    """Counts arrays; not the votes and headers, which are a few bytes a call."""

    def __init__(self, inner: Channels, log: Log) -> None:
        self.inner = inner
        self.arrays = CountingTransport(inner.arrays, log)
        self.control, self.mail = inner.control, inner.mail
        self.hosts, self.mpi_comm = inner.hosts, inner.mpi_comm

    def emergency(self):
        return self.inner.emergency()

    def split(self, color: int | None, key: int) -> Channels | None:
        return self.inner.split(color, key)

    def close(self) -> None:
        self.inner.close()


def counting(comm: Communicator) -> tuple[Communicator, Log]:
    """Return a communicator over the same ranks, and the log of its arrays."""
    log: Log = []
    channels = comm._channels.split(0, comm.rank)
    assert channels is not None
    return NaiveCommunicator(CountingChannels(channels, log)), log
