"""Chainer's snapshot on many ranks, each state saved once.

replica_sets = [[0, 1], [2, 3]]        what 0 and 1 train is equal, so is that of 2 and 3

save    rank 0 ──► snapshot.0          rank 2 ──► snapshot.2
load    rank 0 ◄── snapshot.0          rank 2 ◄── snapshot.2
          └─► rank 1                     └─► rank 3
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from chainer.serializers import NpzDeserializer
from chainer.training import Extension
from chainer.training.extensions._snapshot import _find_latest_snapshot

from mnx.errors import ArgumentError, DataError, DtypeError

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


def multi_node_snapshot(
    comm: CommunicatorBase, snapshot: Any, replica_sets: Iterable[int | Iterable[int]]
) -> MultiNodeSnapshot:
    """Let one rank of each set of replicas save, and give what it loads to the others.

    Collective: all ranks call it with the same sets. For a training that is to go on with the
    same bits, prefer `mnx.extensions.snapshot`, which saves every rank's own state.

    Parameters
    ----------
    comm : CommunicatorBase
    snapshot : extension
        What ``chainer.training.extensions.snapshot`` or ``snapshot_object`` returns. The number
        of this rank is appended to its file name, as in ``'snapshot_iter_100.2'``.
    replica_sets : iterable of int or iterable of int
        Each element is a set of ranks that hold the same, or a rank of which there is no second.
        The ranks that are not named form one more set: ``[]`` means that all hold the same,
        ``[[0, 1], [2, 3]]`` and ``[range(0, 4, 2)]`` are two sets of two of four.

    Returns
    -------
    MultiNodeSnapshot
        All ranks extend their trainer by it. With ``autoload=True`` it also loads.

    Raises
    ------
    ArgumentError, DtypeError
        A set names no rank, or one rank twice; `snapshot` is none of Chainer's, or loads by
        itself and has a function for a file name, which Chainer cannot look for (on all ranks).

    Examples
    --------
    >>> from chainer.training import extensions
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> mnx.extensions.multi_node_snapshot(comm, extensions.snapshot(), []).snapshot.filename
    'snapshot_iter_{.updater.iteration}.0'
    """
    return MultiNodeSnapshot(comm, snapshot, replica_sets)


class MultiNodeSnapshot(Extension):
    """What `multi_node_snapshot` returns.

    Attributes
    ----------
    is_master : bool
        Whether this rank, the lowest of its set, saves and loads.
    replica_sets : list of list of int
        The sets with all ranks of the communicator.
    snapshot : extension
    """

    default_name = 'multi_node_snapshot'

    def __init__(
        self, comm: CommunicatorBase, snapshot: Any, replica_sets: Iterable[int | Iterable[int]]
    ) -> None:
        with comm.together('multi_node_snapshot') as meeting:
            self.replica_sets = complete_sets(replica_sets, comm.size)
            meeting.bring(self.replica_sets)
            _check_snapshot(snapshot)
        self.comm = comm
        self.snapshot = snapshot
        self.trigger = snapshot.trigger
        self.priority = snapshot.priority
        number = next(i for i, ranks in enumerate(self.replica_sets) if comm.rank in ranks)
        self.is_master = comm.rank == self.replica_sets[number][0]
        self._replicas: Any = comm.split(number, comm.rank)
        self._suffix = f'.{comm.rank}'
        snapshot.filename = _with_suffix(snapshot.filename, self._suffix)

    def initialize(self, trainer: Any) -> None:
        """Prepare; load if the snapshot's ``autoload`` is set. Collective.

        Raises
        ------
        DataError
            The masters' newest files are of different names (on all ranks, nothing is loaded).
        """
        found = None
        with self.comm.together('multi_node_snapshot'):
            if self.is_master and self.snapshot.autoload:
                found = _find_latest_snapshot(self.snapshot.filename, trainer.out)
        self._check_alike(found, trainer.out)
        self._load(trainer, None if found is None else str(found))

    def __call__(self, trainer: Any) -> None:
        """Save on the masters. Collective: all ranks call it, and all raise if one fails."""
        with self.comm.together('multi_node_snapshot'):
            if self.is_master:
                self.snapshot(trainer)

    def on_error(self, trainer: Any, exc: Exception, tb: Any) -> None:
        """Pass an error of the training loop on, on the masters. Not collective."""
        if self.is_master:
            self.snapshot.on_error(trainer, exc, tb)

    def finalize(self) -> None:
        """Let the masters' snapshots write what they have not yet written."""
        if self.is_master:
            self.snapshot.finalize()

    def _check_alike(self, found: str | None, out: object) -> None:
        """Raise if the masters are about to load what was not saved together."""
        name = None if found is None else found.removesuffix(self._suffix)
        names = self.comm.allgather_obj(name)
        masters = [ranks[0] for ranks in self.replica_sets]
        newest = {rank: names[rank] for rank in masters}
        if len(set(newest.values())) > 1:
            lines = [f'  rank {rank}: {name or "none"}' for rank, name in newest.items()]
            raise DataError(
                f'multi_node_snapshot: the newest snapshots in {out} are not of one time. They '
                'are\n' + '\n'.join(lines) + '\nRemove those that not all of these ranks have.'
            )

    def _load(self, trainer: Any, found: str | None) -> None:
        target = trainer if self.snapshot._target is None else self.snapshot._target
        state = None
        with self.comm.together('multi_node_snapshot'):
            if self.is_master:
                self.snapshot.initialize(trainer)
                state = None if found is None else _contents(Path(trainer.out, found))
        state = self._replicas.bcast_obj(state)
        with self.comm.together('multi_node_snapshot'):
            if state is not None and not self.is_master:
                NpzDeserializer(state).load(target)


def complete_sets(replica_sets: Iterable[int | Iterable[int]], size: int) -> list[list[int]]:
    """Return the sets as sorted lists, with one more of the ranks that are not named.

    >>> complete_sets([0], 4), complete_sets([], 3), complete_sets([range(0, 4, 2)], 4)
    ([[0], [1, 2, 3]], [[0, 1, 2]], [[0, 2], [1, 3]])
    """
    sets = [sorted(_ranks(item)) for item in replica_sets]
    named = [rank for ranks in sets for rank in ranks]
    if len(set(named)) < len(named) or not all(0 <= rank < size for rank in named):
        raise ArgumentError(
            f'multi_node_snapshot: wrong replica_sets, expected each rank of 0 to {size - 1} at '
            f'most once but got {sets}. Name the ranks that hold the same in one set.'
        )
    rest = [rank for rank in range(size) if rank not in named]
    return [ranks for ranks in (*sets, rest) if ranks]


def _ranks(item: Any) -> Sequence[int]:
    return [operator.index(rank) for rank in (item if isinstance(item, Iterable) else [item])]


def _with_suffix(filename: Any, suffix: str) -> Any:
    if callable(filename):
        return lambda trainer: f'{filename(trainer)}{suffix}'
    return f'{filename}{suffix}'


def _contents(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=True) as file:  # Chainer saves None as an object
        return {key: file[key] for key in file.files}


def _check_snapshot(snapshot: Any) -> None:
    if not hasattr(snapshot, 'autoload') or not hasattr(snapshot, 'filename'):
        raise DtypeError(
            "multi_node_snapshot: expected Chainer's snapshot extension but got "
            f'{type(snapshot).__name__}. Pass what chainer.training.extensions.snapshot returns.'
        )
    if snapshot.autoload and callable(snapshot.filename):
        raise ArgumentError(
            'multi_node_snapshot: cannot look for files whose names a function makes, expected a '
            f'string with autoload=True but got {snapshot.filename!r}. Pass a format string.'
        )
