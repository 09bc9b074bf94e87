"""The emergency channel over MPI: notices by small messages, the end by MPI_Abort.

With `mpi`, which imports it late, and `mpi_memory` the only module that imports mpi4py.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from typing import Any

from mpi4py import MPI

from mnx.transports import emergency
from mnx.transports.base import Pending
from mnx.transports.mpi import Requests

_OF_FAILURES, _OF_SECOND_LINE = 0, 1  # tags


class _Notices:
    """Small messages with a tag of their own, which nobody else receives.

    A rank that waits in a collective neither receives nor hinders them: they are few and small,
    and stay in its library's queue of unexpected messages.
    """

    def __init__(self, comm: MPI.Comm, tag: int) -> None:
        self._comm, self._tag = comm, tag
        self._sending: list[MPI.Request] = []  # MPI reads their buffers until they end

    def notify(self, notice: bytes, peers: Iterable[int]) -> None:
        """Start sending `notice` to `peers`, this rank left out."""
        self._sending = [request for request in self._sending if not request.Test()]
        for peer in peers:
            if peer != self._comm.rank:
                self._sending.append(self._comm.Isend([notice, MPI.BYTE], peer, self._tag))

    def poll(self) -> list[bytes]:
        """Return the notices that have arrived."""
        notices = []
        status = MPI.Status()
        while (message := self._comm.Improbe(MPI.ANY_SOURCE, self._tag, status)) is not None:
            notice = bytearray(status.Get_count(MPI.BYTE))
            message.Recv([notice, MPI.BYTE])
            notices.append(bytes(notice))
        return notices


class MpiEmergency:
    """Notices on a communicator of their own, the end by MPI_Abort.

    Parameters
    ----------
    comm : MPI.Comm
        All ranks of the job, or those to whom the notices go. Collective: it is duplicated.
    """

    carries_notices = True

    def __init__(self, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
        self._comm = comm.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        self._notices = _Notices(self._comm, _OF_FAILURES)

    def notify(self, notice: bytes) -> None:
        """Start sending `notice` to every other rank."""
        self._notices.notify(notice, range(self.size))

    def poll(self) -> list[bytes]:
        """Return the notices that have arrived."""
        return self._notices.poll()

    def abort(self, code: int) -> None:
        """End the job: all of COMM_WORLD, whatever communicators there are."""
        MPI.COMM_WORLD.Abort(code)

    def second_line(self) -> MpiSecondLine | None:
        """Return a line for another thread, if MPI takes calls of several at a time."""
        is_safe = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        return MpiSecondLine(self._comm, _OF_SECOND_LINE) if is_safe else None


class MpiSecondLine(_Notices):
    """Notices, and a barrier, for a thread beside the main one."""

    def __init__(self, comm: MPI.Comm, tag: int) -> None:
        super().__init__(comm, tag)
        self.job_rank, self.job_size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size

    def start_barrier(self) -> Pending:
        """Start a barrier of all ranks."""
        return Requests([self._comm.Ibarrier()])

    def before_end(self, leave: Callable[[], None]) -> None:
        """Have `leave` called when the program ends or calls MPI.Finalize, whichever is first.

        MPI_Finalize begins with deleting the attributes of COMM_SELF, while all else still works.
        When mpi4py calls it after the end of the program, Python itself is gone: so atexit first.

        References: MPI 4.1, section 11.2.4 (user functions at process termination).
        """
        owner = os.getpid()

        def delete(comm: MPI.Comm, key: int, value: Any) -> None:
            leave()

        def at_exit() -> None:
            if os.getpid() == owner and not MPI.Is_finalized():
                MPI.COMM_SELF.Delete_attr(key)

        key = MPI.Comm.Create_keyval(delete_fn=delete)
        MPI.COMM_SELF.Set_attr(key, None)
        atexit.register(at_exit)


def register_once(comm: MPI.Comm) -> None:
    """Register a channel when `comm` holds the whole job. Collective over `comm`.

    A communicator over some of the ranks registers nothing, since the others would not take
    part: these ranks' failures then end the job without comparing notes. Every communicator
    over all ranks is made by all of them, so they always agree on which one is the first.
    """
    spans_job = not comm.is_inter and comm.size == MPI.COMM_WORLD.size > 1
    if spans_job and emergency.current() is None:
        emergency.register(MpiEmergency())
