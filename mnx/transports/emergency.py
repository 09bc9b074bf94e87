"""The way out when a rank fails while the others wait for it in a collective.

A channel carries short notices between failing ranks and can end the job. The MPI transport
registers one when it starts up; the except hook asks for it. Nothing here imports MPI.

    the rank has            its way out                                  and the other failures
    a communicator          the channel that was registered              are known by notices
    MPI, started by others  `AbortOnly`: MPI_Abort                       are not known
    no MPI yet              `LauncherOnly`: a word to Hydra              are not known
    no MPI, no Hydra        none: it exits, by which Open MPI's launcher ends the job itself
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from mnx.transports.base import Pending
from mnx.transports.launch import HYDRAS, Launch, detect, pmi_socket


class EmergencyChannel(Protocol):
    """What the except hook needs of a transport; none of it needs the healthy ranks' help."""

    @property
    def rank(self) -> int:
        """Number of this rank among those that the channel joins: all of the job, usually."""

    @property
    def size(self) -> int:
        """Number of ranks that the channel joins."""

    @property
    def carries_notices(self) -> bool:
        """Whether failing ranks learn of one another; else `notify` and `poll` do nothing."""

    def notify(self, notice: bytes) -> None:
        """Start sending `notice` to every other rank; return at once."""

    def poll(self) -> list[bytes]:
        """Return the notices that have arrived since the last call, without waiting."""

    def abort(self, code: int) -> None:
        """End all processes of the job with exit status `code`."""

    def second_line(self) -> SecondLine | None:
        """Return a line that another thread may use at the same time, if there can be one."""


class SecondLine(Protocol):
    """What the watchdog's thread needs of a transport: notices apart from those of failures."""

    @property
    def job_rank(self) -> int:
        """Number of this rank in the job; the channel may join only some and count these."""

    @property
    def job_size(self) -> int:
        """Number of ranks of the job."""

    def notify(self, notice: bytes, peers: Iterable[int]) -> None:
        """Start sending `notice` to some ranks; return at once."""

    def poll(self) -> list[bytes]:
        """Return the notices that have arrived since the last call, without waiting."""

    def start_barrier(self) -> Pending:
        """Start a barrier of all ranks."""

    def before_end(self, leave: Callable[[], None]) -> None:
        """Have `leave` called in the last moment in which MPI can be used."""


class _Mute:
    """What channels without notices share."""

    carries_notices = False

    def notify(self, notice: bytes) -> None:
        """Do nothing."""

    def poll(self) -> list[bytes]:
        """Return no notice."""
        return []

    def second_line(self) -> None:
        """Return no line."""


class AbortOnly(_Mute):
    """A channel without notices: the user started MPI, and no mnx communicator exists yet.

    A message on the user's own communicator could be taken for theirs.
    """

    def __init__(self, mpi: Any) -> None:
        self._world = mpi.COMM_WORLD
        self.rank, self.size = int(self._world.rank), int(self._world.size)

    def abort(self, code: int) -> None:
        """End the job by MPI_Abort."""
        self._world.Abort(code)


class LauncherOnly(_Mute):
    """A channel without MPI: over the socket by which Hydra and its ranks speak PMI-1.

    Hydra takes a rank that leaves before MPI_Init for one that needs no MPI, and does not end the
    others, who wait for it there. Starting MPI only to abort would itself wait, for ranks that
    may never come; and mpi4py may be what is missing.

    References: P. Balaji et al., PMI: A scalable parallel process-management interface for
    extreme-scale systems, EuroMPI 2010. Tried with MPICH 5.0 and Intel MPI 2021.19.
    """

    def __init__(self, launch: Launch, pmi: int) -> None:
        self.rank, self.size = launch.rank, launch.size
        self._pmi = pmi

    def abort(self, code: int) -> None:
        """End the job: ask the launcher, or else die in a way that MPICH's takes for a crash."""
        try:
            os.write(self._pmi, b'cmd=abort exitcode=%d\n' % code)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


_registered: EmergencyChannel | None = None
_owner = 0  # the process that registered


def register(channel: EmergencyChannel) -> None:
    """Make `channel` the one that a failure of this process uses."""
    global _registered, _owner
    _registered, _owner = channel, os.getpid()


def current() -> EmergencyChannel | None:
    """Return the registered channel; None in a process that did not register it itself.

    A forked worker inherits this module, but MPI may not be used there, and the worker's
    failure is its parent's to handle.
    """
    return _registered if os.getpid() == _owner else None


def bare_mpi() -> AbortOnly | None:
    """Return a channel that can only abort, if this process runs MPI without mnx's help."""
    mpi = sys.modules.get('mpi4py.MPI')
    if mpi is None or not mpi.Is_initialized() or mpi.COMM_WORLD.size == 1:
        return None
    return AbortOnly(mpi)


def bare_launcher(environ: Mapping[str, str]) -> LauncherOnly | None:
    """Return a channel that can only abort, if Hydra itself started this process as a rank.

    A program that a rank runs inherits the variables but, unless by os.system, not the socket.
    """
    launch, pmi = detect(environ), pmi_socket(environ)
    if launch is None or launch.size == 1 or pmi is None:
        return None
    return LauncherOnly(launch, pmi) if launch.launcher in HYDRAS else None


def is_usable() -> bool:
    """Return whether MPI, if loaded at all, still takes calls."""
    mpi = sys.modules.get('mpi4py.MPI')
    return mpi is None or not mpi.Is_finalized()
