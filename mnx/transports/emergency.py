"""The way out when a rank fails while the others wait for it in a collective.

A channel carries short notices between failing ranks and can end the job. The MPI transport
registers one when it starts up; the except hook asks for it. Nothing here imports MPI.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol


class EmergencyChannel(Protocol):
    """What the except hook needs of a transport; none of it needs the healthy ranks' help."""

    @property
    def rank(self) -> int:
        """Number of this rank in the job."""

    @property
    def size(self) -> int:
        """Number of ranks of the job."""

    def notify(self, notice: bytes) -> None:
        """Start sending `notice` to every other rank; return at once."""

    def poll(self) -> list[bytes]:
        """Return the notices that have arrived since the last call, without waiting."""

    def abort(self, code: int) -> None:
        """End all processes of the job with exit status `code`."""


class AbortOnly:
    """A channel without notices: the user started MPI, and no mnx communicator exists yet."""

    def __init__(self, mpi: Any) -> None:
        self._world = mpi.COMM_WORLD
        self.rank, self.size = int(self._world.rank), int(self._world.size)

    def notify(self, notice: bytes) -> None:
        """Do nothing: a message on the user's own communicator could be taken for theirs."""

    def poll(self) -> list[bytes]:
        """Return no notice."""
        return []

    def abort(self, code: int) -> None:
        """End the job by MPI_Abort."""
        self._world.Abort(code)


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


def is_usable() -> bool:
    """Return whether MPI, if loaded at all, still takes calls."""
    mpi = sys.modules.get('mpi4py.MPI')
    return mpi is None or not mpi.Is_finalized()
