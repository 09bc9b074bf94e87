"""`Distributed`: the job as one object, its backend chosen when the program runs.

nGraph's class of this name was compiled for one of MPI and MLSL; here an argument decides, or the
variable ``MNX_COMMUNICATOR``, or `create_communicator`.
"""

from __future__ import annotations

import os
from types import TracebackType

from mnx.communicators.base import Communicator
from mnx.communicators.factory import ALIASES, NAMES, create_communicator
from mnx.errors import ArgumentError, MissingPackageError
from mnx.transports import launch

VARIABLE = 'MNX_COMMUNICATOR'

OF_NGRAPH = {'mpi': 'flat', 'null': 'local'}
_NAMES = {**ALIASES, **OF_NGRAPH}
_GONE = ('oneccl', 'mlsl')

_open: list[Distributed] = []  # those that made their communicator, the latest last


class Distributed:
    """The job, and this process's place in it; an object, or a context manager.

    Collective: all ranks make one, with the same backend. One made while another is open shares
    its communicator, unless it asks for another backend.

    Parameters
    ----------
    backend : str or Communicator, optional
        A name for `create_communicator`; 'mpi' for 'flat', 'null' for 'local' (each process
        alone). Or a communicator, which stays the caller's. Default: the environment variable
        ``MNX_COMMUNICATOR``, else 'auto'.

    Attributes
    ----------
    comm : Communicator
    rank, size : int
    local_rank : int
        This process's number on its node; that of its GPU, too.
    name : str
        Of the communicator that was chosen.

    Raises
    ------
    ArgumentError
        An unknown name (on all ranks).
    MismatchError
        The ranks ask for different backends (on all ranks).
    MissingPackageError
        Something is missing that the backend needs (on all ranks).

    Examples
    --------
    >>> import mnx
    >>> with mnx.Distributed('null') as job:
    ...     print(job.rank, job.size, job.name)
    0 1 local
    """

    def __init__(self, backend: str | Communicator | None = None) -> None:
        self._owns = False
        if isinstance(backend, Communicator):
            self.comm = backend
        else:
            self.comm = self._found(backend)
        self.rank, self.size = self.comm.rank, self.comm.size
        self.local_rank, self.name = self.comm.intra_rank, self.comm.name

    def _found(self, backend: str | None) -> Communicator:
        """Return the open job's communicator, or a new one."""
        name = str(backend or os.environ.get(VARIABLE) or 'auto').lower()
        job = _open[-1] if _open else None
        _compare(name, job)
        name = _NAMES.get(name, name)
        if job is not None and (backend is None or name in ('auto', job.name)):
            return job.comm
        comm = create_communicator(name)
        self._owns = True
        _open.append(self)
        return comm

    def close(self) -> None:
        """Free what this object has made: the communicator, unless it was there before.

        Collective. MPI itself is left to mpi4py, which ends it with the program if it began it.
        """
        if self._owns:
            self._owns = False
            _open.remove(self)
            self.comm.finalize()

    def __enter__(self) -> Distributed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # a rank that fails cannot wait for the others here
            self.close()
        elif self._owns:
            self._owns = False
            _open.remove(self)

    def __repr__(self) -> str:
        return f'<mnx Distributed, {self.name}, rank {self.rank} of {self.size}>'


def _compare(name: str, job: Distributed | None) -> None:
    """Raise on all ranks unless all of them ask for the same backend, which is known."""
    if job is not None:
        _meet(name, job.comm)
    elif launch.detect(os.environ) is None:
        _check(name)
    else:
        with create_communicator('naive') as everyone:
            _meet(name, everyone)


def _meet(name: str, comm: Communicator) -> None:
    with comm.together('Distributed') as meeting:
        meeting.bring(name)
        _check(name)


def _check(name: str) -> None:
    if name in _GONE:
        raise MissingPackageError(
            f"Distributed: there is no backend {name!r} in mnx. Take 'mpi', or 'auto'; Intel MPI "
            'is one of the MPIs.'
        )
    if name not in (*NAMES, *OF_NGRAPH):
        raise ArgumentError(
            f'Distributed: unknown backend {name!r} (given, or in {VARIABLE}), expected one of '
            f'{", ".join((*OF_NGRAPH, *NAMES))}.'
        )
