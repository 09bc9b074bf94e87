"""Every error mnx raises on purpose.

Each derives from `MnxError` and from the built-in it specialises, so that both
``except mnx.MnxError`` and ``except ValueError`` find it::

    MnxError
    ├── ArgumentError      (ValueError)         a value the call cannot work with
    │   └── MismatchError                       ranks disagree about the call they make together
    ├── DtypeError         (TypeError)          a type or dtype the call cannot work with
    ├── DataError          (RuntimeError)       a data set is damaged
    │   └── MissingDataError (FileNotFoundError)  a data set is not there
    ├── ClosedError        (RuntimeError)       a communicator is used after finalize()
    ├── LaunchError        (RuntimeError)       the launcher and MPI do not fit together
    ├── TransportError     (RuntimeError)       a transport failed: a lost rank, a device, a library
    ├── MissingPackageError (ImportError)       an optional package is needed
    └── RemoteError        (RuntimeError)       another rank failed with an error of its own
"""

from __future__ import annotations


class MnxError(Exception):
    """Base of all errors raised by mnx."""


class ArgumentError(MnxError, ValueError):
    """A value that the call cannot work with."""


class MismatchError(ArgumentError):
    """The ranks disagree about the call they make together."""


class DtypeError(MnxError, TypeError):
    """A type or dtype that the call cannot work with."""


class DataError(MnxError, RuntimeError):
    """A data set is damaged or unusable."""


class MissingDataError(DataError, FileNotFoundError):
    """A data set is not where it was looked for."""


class ClosedError(MnxError, RuntimeError):
    """A communicator is used after ``finalize()``."""


class LaunchError(MnxError, RuntimeError):
    """The launcher and the MPI library do not fit together."""


class TransportError(MnxError, RuntimeError):
    """A transport failed: a rank was lost, or a device or library does not do its work."""


class MissingPackageError(MnxError, ImportError, RuntimeError):
    """A feature needs a package that is not installed.

    Also a `RuntimeError`, which ChainerMN raised where CuPy or NCCL was missing.
    """


class RemoteError(MnxError, RuntimeError):
    """Another rank failed with an error that is not mnx's own."""


def explain(
    call: str,
    wrong: str,
    expected: object,
    actual: object,
    *,
    rank: int,
    size: int,
    advice: str,
) -> str:
    """Return an error text in the one form that all of mnx uses.

    >>> explain('alltoall', 'one array per rank', 4, 3, rank=2, size=4, advice='Pass 4 arrays')
    'alltoall: one array per rank, expected 4 but got 3 (rank 2 of 4). Pass 4 arrays.'
    """
    return (
        f'{call}: {wrong}, expected {expected} but got {actual} (rank {rank} of {size}). {advice}.'
    )
