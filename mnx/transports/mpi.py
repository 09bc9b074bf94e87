"""MPI by way of mpi4py, host buffers in and out.

The only module of mnx, with `mpi_emergency` and `mpi_memory`, that imports mpi4py, and only when it
is called.
No message holds more than `LARGEST_COUNT` elements: longer buffers travel in pieces, since not
every MPI library takes 2**31 elements or more (Open MPI 5 refuses, Intel MPI sums them wrongly).

References: MPI 4.1, chapters 3 (point-to-point), 6 (collectives) and 7 (groups).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from mnx.arrays import Array, synchronize
from mnx.transports import launch
from mnx.transports.base import ANY_TAG, Channels, Pending, SharedWindow, Transport
from mnx.transports.hosts import shared_hosts
from mnx.transports.local import OwnMail
from mnx.transports.waiting import since, waits

if TYPE_CHECKING:
    from mpi4py import MPI

    from mnx.transports.emergency import EmergencyChannel
    from mnx.transports.mpi_memory import Board

LARGEST_COUNT = 2**30
STRAIGHT_FROM = 32 * 1024  # bytes, which MPICH gathers by a tree: many travel several times
BOARD_AFTER = 100  # meetings: making one takes as long as they do by messages


def pieces(buffer: Array) -> Sequence[Array]:
    """Cut `buffer` into views of at most `LARGEST_COUNT` elements; an empty one into none."""
    if 0 < buffer.size <= LARGEST_COUNT:
        return (buffer,)
    starts = range(0, buffer.size, LARGEST_COUNT)
    return [buffer[start : start + LARGEST_COUNT] for start in starts]


def ready(buffer: Array) -> Sequence[Array]:
    """Return the pieces of a buffer that MPI may read now."""
    if type(buffer) is np.ndarray and 0 < buffer.size <= LARGEST_COUNT:
        return (buffer,)
    synchronize(buffer)
    return pieces(buffer)


class Requests:
    """Some started MPI operations that end together."""

    def __init__(self, requests: list[MPI.Request]) -> None:
        self._mpi = _mpi()
        self._requests = requests

    def test(self) -> bool:
        return bool(self._mpi.Request.Testall(self._requests))

    @waits
    def wait(self) -> None:
        self._mpi.Request.Waitall(self._requests)


class MpiTransport(Transport):
    """Moves buffers over a private duplicate of `comm`.

    Gather, scatter and all-to-all go from point to point, straight between the ranks' arrays:
    no copy into one long buffer, and no limit on its length. Their messages carry the highest
    tag, which users cannot give.
    """

    @waits
    def __init__(self, comm: MPI.Comm) -> None:
        self._mpi = mpi = _mpi()
        self._comm = comm.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        # of the world: Open MPI tells it of no communicator made by Split
        self._own_tag = int(mpi.COMM_WORLD.Get_attr(mpi.TAG_UB))
        self.max_tag = self._own_tag - 1
        self.any_source = int(mpi.ANY_SOURCE)
        self._own_mail = OwnMail(self.rank)
        self._ops = {'sum': mpi.SUM, 'max': mpi.MAX, 'min': mpi.MIN, 'prod': mpi.PROD}
        self._in_place = mpi.IN_PLACE
        self._board: Board | None = None
        self._meetings = 0  # until there is a board

    @waits
    def send(self, buffer: Array, dest: int, tag: int) -> None:
        if dest == self.rank:
            self._own_mail.put(buffer.tobytes(), tag)
            return
        for piece in ready(buffer):
            self._comm.Send(piece, dest, tag)

    @waits
    def recv(self, buffer: Array, source: int, tag: int) -> None:
        if source == self.rank:
            self._own_mail.fill(buffer, tag)
            return
        for piece in pieces(buffer):
            self._comm.Recv(piece, source, tag)

    # The next four take as little as can be: what `waits` does is written out.
    def find_largest(self, words: Array) -> None:
        thread = get_ident()
        since[thread] = monotonic()
        try:
            if self._board is None or words.size > self._board.ROOM:
                self._find_largest(words)
            else:
                self._board.find_largest(words)
        finally:
            since.pop(thread, None)

    def broadcast(self, buffer: Array, root: int) -> None:
        thread = get_ident()
        since[thread] = monotonic()
        try:
            for piece in ready(buffer):
                self._comm.Bcast(piece, root)
        finally:
            since.pop(thread, None)

    def _find_largest(self, words: Array) -> None:
        self._meetings += 1  # first: where a signal ends this call, the next one counts on
        if self._meetings == BOARD_AFTER and self.size > 1:
            from mnx.transports.mpi_memory import board_of

            self._board = board_of(self._comm)
        self._comm.Allreduce(self._in_place, words, self._ops['max'])

    def send_frame(self, frame: bytes, dest: int, tag: int) -> None:
        if dest == self.rank:
            self._own_mail.put(frame, tag)
            return
        thread = get_ident()
        since[thread] = monotonic()
        try:
            self._comm.Send(frame, dest, tag)
        finally:
            since.pop(thread, None)

    def recv_frame(
        self, memory: bytearray, source: int, tag: int, status: MPI.Status | None = None
    ) -> tuple[int, int]:
        if status is not None or tag == ANY_TAG or source in (self.rank, self.any_source):
            return self._recv_any_frame(memory, source, tag, status)
        thread = get_ident()
        since[thread] = monotonic()
        try:
            self._comm.Recv(memory, source, tag)
        finally:
            since.pop(thread, None)
        return source, tag

    @waits
    def _recv_any_frame(
        self, memory: bytearray, source: int, tag: int, status: MPI.Status | None
    ) -> tuple[int, int]:
        status = status or self._mpi.Status()
        own = self._own_mail.take(tag) if source == self.rank else None
        if own is None and source == self.any_source:
            own = self._own_mail.find(tag)
        if own is None:
            self._comm.Recv(memory, source, self._mpi.ANY_TAG if tag == ANY_TAG else tag, status)
        else:
            status.source, status.tag = self.rank, own[0]
            memory[: len(own[1])] = own[1]
        return status.source, status.tag

    @waits
    def reduce(self, buffer: Array, root: int, op: str = 'sum', into: Array | None = None) -> None:
        synchronize(buffer)
        at_root = self.rank == root
        ways = self._ways(buffer, into) if at_root else [(p, None) for p in pieces(buffer)]
        for sent, received in ways:
            self._comm.Reduce(sent, received, self._ops[op], root)

    @waits
    def all_reduce(self, buffer: Array, op: str = 'sum', into: Array | None = None) -> None:
        synchronize(buffer)
        for sent, received in self._ways(buffer, into):
            self._comm.Allreduce(sent, received, self._ops[op])

    def _ways(self, buffer: Array, into: Array | None) -> Iterable[tuple[Any, Array]]:
        """Return what MPI reads and where it writes, piece by piece."""
        if into is None:
            return [(self._in_place, piece) for piece in pieces(buffer)]
        return zip(pieces(buffer), pieces(into), strict=True)

    def start_all_reduce(self, buffer: Array, op: str = 'sum') -> Pending:
        synchronize(buffer)
        ways = self._ways(buffer, None)
        return Requests([self._comm.Iallreduce(*way, self._ops[op]) for way in ways])

    @waits
    def reduce_scatter(
        self, sent: Array, received: Array, counts: Sequence[int], op: str = 'sum'
    ) -> None:
        synchronize(sent)
        if sent.size <= LARGEST_COUNT:
            self._comm.Reduce_scatter(sent, received, counts, self._ops[op])
            return
        stops = np.cumsum(counts)
        for root, (stop, count) in enumerate(zip(stops, counts, strict=True)):
            for piece, target in zip(
                pieces(sent[stop - count : stop]),
                pieces(received) if self.rank == root else itertools.repeat(None),
                strict=False,
            ):
                self._comm.Reduce(piece, target, self._ops[op], root)

    def gather(self, sent: Array, received: Sequence[Array] | None, root: int) -> None:
        receives = [] if received is None else list(enumerate(received))
        self._exchange([(root, sent)], receives)

    def gather_rows(self, sent: Array, received: Array | None, root: int) -> None:
        if self.size > 2 and sent.nbytes >= STRAIGHT_FROM:
            super().gather_rows(sent, received, root)
        else:
            self._gather_rows(sent, received, root)

    @waits
    def _gather_rows(self, sent: Array, received: Array | None, root: int) -> None:
        synchronize(sent)
        self._comm.Gather(sent, received, root)

    def scatter(self, sent: Sequence[Array] | None, received: Array, root: int) -> None:
        sends = [] if sent is None else list(enumerate(sent))
        self._exchange(sends, [(root, received)])

    @waits
    def all_gather(self, sent: Array, received: Array, counts: Sequence[int]) -> None:
        if len(set(counts)) == 1 and received.size <= LARGEST_COUNT:
            synchronize(sent)
            self._comm.Allgather(sent, received)
            return
        # not Allgatherv: MPICH's takes seven times as long at 1 MiB
        stops = itertools.accumulate(counts)
        parts = [received[stop - n : stop] for stop, n in zip(stops, counts, strict=True)]
        self._exchange([(r, sent) for r in self._peers()], [(r, parts[r]) for r in self._peers()])

    def all_to_all(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        peers = self._peers()
        self._exchange([(r, sent[r]) for r in peers], [(r, received[r]) for r in peers])

    @waits
    def all_to_all_rows(self, sent: Array, received: Array) -> None:
        if received.size > LARGEST_COUNT:
            super().all_to_all_rows(sent, received)
            return
        synchronize(sent)
        self._comm.Alltoall(sent, received)

    def _peers(self) -> list[int]:
        """Return all ranks from this one on, so that not all of them send to rank 0 at once."""
        return [(self.rank + k) % self.size for k in range(self.size)]

    @waits
    def _exchange(
        self, sends: Iterable[tuple[int, Array]], receives: Iterable[tuple[int, Array]]
    ) -> None:
        own_source = own_target = None
        requests: list[MPI.Request] = []
        for source, buffer in receives:
            if source == self.rank:
                own_target = buffer
            else:
                requests += [self._comm.Irecv(p, source, self._own_tag) for p in pieces(buffer)]
        for dest, buffer in sends:
            if dest == self.rank:
                synchronize(buffer)
                own_source = buffer
            else:
                requests += [self._comm.Isend(p, dest, self._own_tag) for p in ready(buffer)]
        if own_target is not None:
            own_target[...] = own_source  # while the others begin
        self._mpi.Request.Waitall(requests)

    @waits
    def split(self, color: int, key: int) -> MpiTransport:
        part = self._comm.Split(color, key)
        try:
            return MpiTransport(part)  # of a duplicate
        finally:
            part.Free()

    def allocate_shared(self, nbytes: int) -> SharedWindow:
        from mnx.transports.mpi_memory import MpiSharedWindow

        return MpiSharedWindow(self._comm, nbytes)

    @waits
    def barrier(self) -> None:
        self._comm.Barrier()

    @waits
    def gather_hosts(self) -> tuple[str, ...]:
        """Return every rank's host, on every rank."""
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, self.rank)
        leader = node.bcast(self.rank)
        node.Free()
        names = self.gather_names(self._mpi.Get_processor_name())
        return shared_hosts(names, self._comm.allgather(leader))

    @waits
    def gather_names(self, name: str) -> tuple[str, ...]:
        """Return every rank's `name`, on every rank."""
        return tuple(self._comm.allgather(name))

    @waits
    def close(self) -> None:
        self._board = None
        if self._comm:  # a second call does nothing
            self._comm.Free()


class MpiChannels(Channels):
    """The channels of a communicator over the ranks of `comm`. Collective to make.

    `comm` stays the user's; both transports talk over duplicates of it. `host` is where this
    rank says it is: in tests, ranks of one machine can take themselves for several nodes.
    """

    def __init__(self, comm: MPI.Comm | None = None, host: str | None = None) -> None:
        mpi = _mpi()
        self.mpi_comm = mpi.COMM_WORLD if comm is None else comm
        _register_emergency(self.mpi_comm)
        self.arrays = self.control = MpiTransport(self.mpi_comm)
        self.mail = MpiTransport(self.mpi_comm)
        self.hosts = self.control.gather_names(host) if host else self.control.gather_hosts()
        self._host = self.hosts[self.control.rank]
        self._open = True

    @waits
    def emergency(self) -> EmergencyChannel:
        from mnx.transports import mpi_emergency

        return mpi_emergency.MpiEmergency(self.mpi_comm)

    @waits
    def split(self, color: int | None, key: int) -> MpiChannels | None:
        mpi = _mpi()
        comm = self.mpi_comm.Split(mpi.UNDEFINED if color is None else color, key)
        return None if comm == mpi.COMM_NULL else _SplitChannels(comm, self._host)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._free()

    @waits
    def _free(self) -> None:
        self.arrays.close()
        self.mail.close()


class _SplitChannels(MpiChannels):
    """Channels whose communicator was made by `split`, and so is mnx's to free."""

    @waits
    def _free(self) -> None:
        super()._free()
        self.mpi_comm.Free()


def _mpi() -> Any:
    from mpi4py import MPI

    return MPI


def start() -> None:
    """Start MPI, unless it runs; some libraries end the process if the launcher is not theirs.

    Whoever imports mpi4py.MPI first decides how MPI starts. So it is imported without starting,
    the library is asked for its name, the user is told if it cannot work, and then it starts.
    """
    if 'mpi4py.MPI' in sys.modules:
        return
    import mpi4py

    automatic, mpi4py.rc.initialize = mpi4py.rc.initialize, False
    if automatic and mpi4py.rc.finalize is None:
        mpi4py.rc.finalize = True  # None: only what it has initialised itself
    mpi = _mpi()
    mpi4py.rc.initialize = automatic
    if automatic and not mpi.Is_initialized():
        notice = launch.foreign_library(launch.detect(os.environ), library_name())
        if notice is not None:
            print(notice, file=sys.stderr, flush=True)
        mpi.Init_thread(mpi.THREAD_MULTIPLE)


def _register_emergency(comm: MPI.Comm) -> None:
    from mnx.transports import mpi_emergency

    mpi_emergency.register_once(comm)


def world() -> tuple[int, int]:
    """Return the number of ranks that MPI joins, and which one this is; starts MPI."""
    start()
    comm = _mpi().COMM_WORLD
    return int(comm.size), int(comm.rank)


def library_name() -> str:
    """Return the first line of what the loaded MPI library says of itself."""
    return str(_mpi().Get_library_version()).splitlines()[0]
