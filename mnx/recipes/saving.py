"""Snapshots that do not know on how many ranks they were taken.

All ranks of a recipe's training have the same iterators and random states, and parameters are
saved as wholes: the file is that of one process, and any number of ranks goes on from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chainer.training import Extension

from mnx.communicators import Communicator, create_communicator
from mnx.links.saving import Discard
from mnx.training import random_state
from mnx.training import snapshot as snapshots


class SerialSnapshot(Extension):
    """Saves the training as one process would. Calling it is collective.

    Parameters
    ----------
    path : str
    comm : Communicator
        All ranks. Rank 0 writes.
    every : int
        So many epochs.
    """

    priority = -100  # after all others, so that their states are of this iteration
    name = 'snapshot'

    def __init__(self, path: str, comm: Communicator, every: int) -> None:
        self.trigger = every, 'epoch'
        self._path, self._comm = Path(path), comm

    def __call__(self, trainer: Any) -> None:
        """Save; all ranks raise if it fails."""
        with self._comm.together('snapshot'):
            if self._comm.rank == 0:
                state = snapshots.merge(snapshots.capture(trainer, 0), [{}])
            else:
                trainer.serialize(Discard())
                random_state.capture(trainer, 0)  # CuPy's generator begins anew on all ranks
        with self._comm.together('snapshot'):
            if self._comm.rank == 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                snapshots.write(self._path, state)


def resume(path: str, trainer: Any, comm: Communicator) -> None:
    """Go on from a file of `SerialSnapshot`. Collective; each rank reads the file.

    Raises
    ------
    MissingDataError, DataError, ArgumentError
        As `mnx.extensions.resume` (on all ranks).
    """
    with comm.together('resume'), create_communicator('local') as alone:
        snapshots.resume(path, trainer, alone)
