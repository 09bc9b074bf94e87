"""The emergency channel over MPI: notices by small messages, the end by MPI_Abort.

With `mpi`, which imports it late, the only module that imports mpi4py.
"""

from __future__ import annotations

from mpi4py import MPI

from mnx.transports import emergency

_TAG = 0


class MpiEmergency:
    """Notices on a communicator of their own, which nobody else receives from.

    A rank that waits in a collective neither receives nor hinders them: they are few and small,
    and stay in its library's queue of unexpected messages.

    Parameters
    ----------
    comm : MPI.Intracomm
        All ranks of the job. Collective: it is duplicated.
    """

    carries_notices = True

    def __init__(self, comm: MPI.Intracomm = MPI.COMM_WORLD) -> None:
        self._comm = comm.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        self._sending: list[MPI.Request] = []  # MPI reads their buffers until they end

    def notify(self, notice: bytes) -> None:
        """Start sending `notice` to every other rank."""
        for peer in range(self.size):
            if peer != self.rank:
                self._sending.append(self._comm.Isend([notice, MPI.BYTE], peer, _TAG))

    def poll(self) -> list[bytes]:
        """Return the notices that have arrived."""
        notices = []
        status = MPI.Status()
        while (message := self._comm.Improbe(MPI.ANY_SOURCE, _TAG, status)) is not None:
            notice = bytearray(status.Get_count(MPI.BYTE))
            message.Recv([notice, MPI.BYTE])
            notices.append(bytes(notice))
        return notices

    def abort(self, code: int) -> None:
        """End the job: all of COMM_WORLD, whatever communicators there are."""
        MPI.COMM_WORLD.Abort(code)


def register_once(comm: MPI.Comm) -> None:
    """Register a channel when `comm` holds the whole job. Collective over `comm`.

    A communicator over some of the ranks registers nothing, since the others would not take
    part: these ranks' failures then end the job without comparing notes. Every communicator
    over all ranks is made by all of them, so they always agree on which one is the first.
    """
    spans_job = not comm.is_inter and comm.size == MPI.COMM_WORLD.size > 1
    if spans_job and emergency.current() is None:
        emergency.register(MpiEmergency())
