"""The extension that takes checkpoints, and goes on from them."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainer.training import Extension

from mnx.errors import ArgumentError, explain
from mnx.training import snapshot
from mnx.training.checkpoints import folder, loading, positions, saving
from mnx.training.checkpoints.loading import Resumed
from mnx.training.checkpoints.sharing import folder_owners

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


class Checkpoint(Extension):
    """Saves the training of all ranks again and again, and goes on from the newest whole set.

    Saved are the trainer of every rank (model, optimizer, iterators, extensions, triggers) and the
    states of its random number generators. What is equal on several ranks is written once. A set
    is whole on the disk or does not count: a process that is killed at any moment, a full disk or
    a damaged file cost the way back to the set before, and nothing else.

    Parameters
    ----------
    comm : CommunicatorBase
    path : path, optional
        A folder that all ranks see, or one of its own for each rank or node. By default
        ``trainer.out``.
    name : str
        Of the folder in `path` that holds the sets.
    keep : int
        How many sets stay, at least 1. While one is written there is one more.

    Raises
    ------
    ArgumentError
        `keep` or `name` makes no sense, or differs between ranks (on all ranks).

    See Also
    --------
    mnx.extensions.snapshot : One file, written by rank 0.

    Notes
    -----
    Collective: all ranks extend their trainer by it, with the same trigger; once per epoch by
    default. Bytes written: each value once for each folder. Bytes moved: checksums.

    Examples
    --------
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> checkpoint = mnx.extensions.Checkpoint(comm, keep=3)

    and then ``trainer.extend(checkpoint, trigger=(500, 'iteration'))``,
    ``checkpoint.resume(trainer)``, ``trainer.run()``.
    """

    trigger = 1, 'epoch'
    priority = -100  # after all others, so that their states are of this iteration
    default_name = 'checkpoint'

    def __init__(
        self,
        comm: CommunicatorBase,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = 'checkpoint',
        keep: int = 5,
    ) -> None:
        with comm.together('Checkpoint') as meeting:
            _check(comm, name, keep)
            meeting.bring(f'name={name} keep={keep}')
        self.comm = comm
        self.path = None if path is None else Path(path)
        self.keep = keep
        self._folder = name
        self._owners: list[int] = []
        self._training = ''  # its name in the manifests; not known before the first set
        self._damaged: frozenset[str] = frozenset()  # of its sets

    def __call__(self, trainer: Any) -> None:
        """Save the training. Collective: all ranks call it, and all raise if it fails.

        Raises
        ------
        OSError
            A disk is full, or a folder cannot be written; on the other ranks `RemoteError`. What
            was there before is still there.
        """
        self._save(trainer, trainer.updater.iteration, self._home(trainer))

    def resume(self, trainer: Any) -> Resumed:
        """Bring `trainer` and the random states to where the newest whole set was taken.

        Collective: all ranks call it, with a trainer that was built as the saved one, before
        ``trainer.run()``. If there is nothing to go on from, nothing changes: a script may call
        it always. Rank 0 says on standard error which sets were skipped, and why.

        With as many ranks as then, the training goes on with the same bits. With another number,
        the examples that are left in the epoch are dealt out again, if the data come from
        `scatter_dataset`; all ranks must see the folder.

        Returns
        -------
        Resumed
            ``iteration`` (None to start anew), ``path``, ``skipped`` and ``notes``.

        Raises
        ------
        DataError
            There were sets, and none is whole (on all ranks).
        ArgumentError
            A set does not fit this trainer, or cannot be scattered again (on all ranks). Model,
            optimizer and iterators are as they were.
        """
        return self._resume(trainer, self._home(trainer))

    def _save(self, trainer: Any, iteration: int, home: Path) -> None:
        comm = self.comm
        if not self._owners:
            self._owners = folder_owners(comm, home)
        if not self._training:
            self._training = comm.bcast_obj(secrets.token_hex(8))
            self._say(_of_others(self._foreign(home), home))
        with comm.together('checkpoint'):
            state = snapshot.capture(trainer, comm.rank)
            state |= positions.capture(trainer, state)
        saving.save(comm, home, self._owners, state, iteration, self._training)
        saving.remove_old(comm, home, self._owners, self.keep, self._foreign(home))

    def _resume(self, trainer: Any, home: Path) -> Resumed:
        resumed = loading.resume(self.comm, home, trainer)
        self._training = resumed.training
        self._damaged = frozenset(skipped.name for skipped in resumed.skipped if skipped.is_damage)
        if resumed or resumed.skipped:
            self._say(str(resumed))
        return resumed

    def _foreign(self, home: Path) -> frozenset[str]:
        """Return the names of finished sets that this training must neither count nor remove."""
        found = {name: folder.look_at(home / name) for name in folder.names_in(home)}
        return self._damaged.union(
            name for name, f in found.items() if f.problem or not f.is_of(self._training)
        )

    def _home(self, trainer: Any) -> Path:
        return Path(self.path or trainer.out) / self._folder

    def _say(self, text: str) -> None:
        if text and self.comm.rank == 0:
            for line in text.splitlines():
                print(f'checkpoint: {line}', file=sys.stderr, flush=True)


def _of_others(names: frozenset[str], home: Path) -> str:
    if not names:
        return ''
    return (
        f'{home} holds {len(names)} sets of a training that this one does not go on from. They '
        'stay; remove them if you do not need them.'
    )


def _check(comm: CommunicatorBase, name: str, keep: int) -> None:
    if not isinstance(keep, int) or keep < 1:
        wrong, expected, actual = 'keep is no number of sets', 'an int >= 1', repr(keep)
    elif name in ('', '..') or Path(name).name != name:
        wrong, expected, actual = 'name is no name of a folder', 'one without "/"', repr(name)
    else:
        return
    raise ArgumentError(
        explain(
            'Checkpoint',
            wrong,
            expected,
            actual,
            rank=comm.rank,
            size=comm.size,
            advice='The folder is given by path',
        )
    )
