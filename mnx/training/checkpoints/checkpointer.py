"""The checkpointer of ChainerMN's name and signature; underneath it is `Checkpoint`."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnx.errors import ArgumentError
from mnx.training.checkpoints import folder
from mnx.training.checkpoints.extension import Checkpoint
from mnx.training.checkpoints.loading import Resumed

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


def create_multi_node_checkpointer(
    name: str,
    comm: CommunicatorBase,
    cp_interval: int = 5,
    gc_interval: int = 5,
    path: str | os.PathLike[str] | None = None,
) -> MultiNodeCheckpointer:
    """Return ChainerMN's checkpointer. Deprecated: use `mnx.extensions.Checkpoint`.

    Collective: all ranks call it with the same arguments; only `path` may differ.

    Parameters
    ----------
    name : str
        Of the training. The sets are in the folder `name` in `path`.
    comm : CommunicatorBase
    cp_interval : int
        How many sets stay, at least 1.
    gc_interval : int
        Ignored: what is too old goes after each set.
    path : path, optional
        By default ``trainer.out``.

    Returns
    -------
    MultiNodeCheckpointer
        Called in each iteration, unless ``trainer.extend`` is given another trigger.
    """
    warnings.warn(
        'create_multi_node_checkpointer is deprecated; use mnx.extensions.Checkpoint.',
        DeprecationWarning,
        stacklevel=2,
    )
    return MultiNodeCheckpointer(name, comm, cp_interval, path)


class MultiNodeCheckpointer(Checkpoint):
    """What `create_multi_node_checkpointer` returns: a `Checkpoint` with the old methods.

    When the training has come to its end its sets are removed, since they served to reach it.
    """

    trigger = 1, 'iteration'
    default_name = 'multi_node_checkpointer'

    def __init__(
        self,
        name: str,
        comm: CommunicatorBase,
        cp_interval: int,
        path: str | os.PathLike[str] | None,
    ) -> None:
        super().__init__(comm, path, name=name, keep=cp_interval)
        self._seconds: list[float] = []

    def initialize(self, trainer: Any) -> None:
        """Write to ``trainer.out``, if no path was given. Not collective."""
        self.path = self.path or Path(trainer.out)

    def __call__(self, trainer: Any) -> None:
        """Save the training. Collective: all ranks call it."""
        self.save(trainer, trainer.updater.iteration)

    def save(self, target: Any, iteration: int) -> None:
        """Save a trainer, or an updater without one. Collective: all ranks call it.

        Parameters
        ----------
        target : Trainer or Updater
        iteration : int
            Under which it is saved.
        """
        start = time.perf_counter()
        trainer = _as_trainer(target)
        self._save(trainer, iteration, self._home(trainer))
        self._seconds.append(time.perf_counter() - start)

    def maybe_load(
        self, trainer: Any, optimizer: Any = None, path: str | os.PathLike[str] | None = None
    ) -> Resumed:
        """Go on from the newest set that is whole on all ranks, if there is one.

        Collective: all ranks call it, before ``trainer.run()``.

        Parameters
        ----------
        trainer : Trainer or Updater
        optimizer : object
            Ignored: no update is spent on a broadcast here.
        path : path, optional
            Where the sets are, from now on.

        Returns
        -------
        Resumed
            ChainerMN's returned None.
        """
        if path is not None:
            self.path = Path(path)
            self._owners = []
        target = _as_trainer(trainer)
        return self._resume(target, self._home(target))

    def get_stats(self) -> str:
        """Return in words how many sets this process has written, and how fast."""
        if not self._seconds:
            return 'no checkpoint yet'
        mean, longest = sum(self._seconds) / len(self._seconds), max(self._seconds)
        return f'{len(self._seconds)} checkpoints: {mean:.3f} s each, {longest:.3f} s at most'

    def finalize(self) -> None:
        """Remove its sets, unless an error ends the training. Not collective."""
        is_error = sys.exc_info()[0] is not None
        if self._owners and self._owners[self.comm.rank] == self.comm.rank and not is_error:
            assert self.path is not None
            home = self.path / self._folder
            for name in set(folder.names_in(home)) - self._foreign(home):
                folder.remove(home / name)

    def _home(self, trainer: Any) -> Path:
        if self.path is None and trainer.out is None:
            raise ArgumentError(
                'checkpointer: no folder is known, expected a path or a trainer but got an '
                'updater alone. Pass path to create_multi_node_checkpointer or maybe_load.'
            )
        return super()._home(trainer)


class UpdaterAlone:
    """An updater in the place of a trainer."""

    out = None

    def __init__(self, updater: Any) -> None:
        self.updater = updater

    def serialize(self, serializer: Any) -> None:
        """Save or load the updater, under the name it has in a trainer."""
        self.updater.serialize(serializer['updater'])


def _as_trainer(target: Any) -> Any:
    return target if hasattr(target, 'updater') else UpdaterAlone(target)
