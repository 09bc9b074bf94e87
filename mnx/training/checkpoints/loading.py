"""Going on from the newest set that is whole on all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from chainer.serializers import NpzDeserializer

from mnx.errors import ArgumentError, DataError
from mnx.training import random_state
from mnx.training.checkpoints import choice, folder, positions, unsaved
from mnx.training.checkpoints.choice import Skipped
from mnx.training.checkpoints.folder import Found
from mnx.training.checkpoints.rehearsal import rehearse
from mnx.training.checkpoints.saved_set import SavedSet
from mnx.training.snapshot import RANDOM, State

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


@dataclass
class Resumed:
    """What `Checkpoint.resume` found; true if the training goes on from a set.

    Attributes
    ----------
    iteration : int or None
        That of the set; None if there was none to go on from.
    path : Path or None
    training : str
        By which the training's sets are known; '' to start anew.
    skipped : list of Skipped
        Newer sets that are not whole, each with a ``name`` and a ``reason``.
    notes : list of str
        What else should be known.
    """

    iteration: int | None = None
    path: Path | None = None
    training: str = ''
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.iteration is not None

    def __str__(self) -> str:
        begin = f'go on from {self.path}' if self else 'start anew'
        return '\n'.join([begin, *(f'skipped {s}' for s in self.skipped), *self.notes])


def resume(comm: CommunicatorBase, home: Path, trainer: Any) -> Resumed:
    """Load the newest set that is whole on all ranks. Collective: all ranks call it."""
    with comm.together('resume'):
        mine = {name: folder.look_at(home / name) for name in folder.names_in(home)}
    finds = comm.allgather_obj(mine)
    resumed = Resumed()
    for name in choice.newest_first(finds):
        skipped = choice.refusal(name, finds)
        if skipped is None:
            skipped = _load(comm, _saved_set(home / name, mine[name]), trainer, resumed)
        if skipped is None:
            return resumed
        resumed.skipped.append(skipped)
    _check_nothing_lost(comm, home, resumed.skipped)
    return resumed


def _saved_set(path: Path, found: Found) -> SavedSet:
    assert found.manifest is not None  # else `choice.refusal` has a reason
    return SavedSet(path, found.manifest)


def _check_nothing_lost(comm: CommunicatorBase, home: Path, skipped: list[Skipped]) -> None:
    """Starting anew is right after a first set that was never finished, and after nothing else."""
    if any(each.is_damage for each in skipped):
        listed = ''.join(f'\n  {each}' for each in skipped)
        raise DataError(
            f'resume: no set of files in {home} is whole on all {comm.size} ranks. Found:{listed}\n'
            'Bring back what is missing (another number of ranks, or other nodes, need a folder '
            'that all ranks see), or remove the folder to start anew.'
        )


def _load(
    comm: CommunicatorBase, saved: SavedSet, trainer: Any, resumed: Resumed
) -> Skipped | None:
    """Load a set if it is whole on all ranks; else return why it is not."""
    scattered_again = saved.manifest.size != comm.size
    state, others, reason = _read(comm, saved, scattered_again)
    reasons = comm.allgather_obj(reason)
    if any(reasons):
        return Skipped(saved.path.name, choice.by_rank(reasons), is_damage=True)
    if scattered_again:
        resumed.notes += _scatter_again(comm, saved, trainer, state, others)
    else:
        resumed.notes += positions.warn_of_other_data(trainer, state)
    _into(comm, saved, trainer, state)
    resumed.iteration, resumed.path = saved.manifest.iteration, saved.path
    resumed.training = saved.manifest.training
    return None


def _read(
    comm: CommunicatorBase, saved: SavedSet, scattered_again: bool
) -> tuple[State, list[tuple[int, State]], str]:
    """Return this rank's state, and of which others it has read the positions; or what is wrong."""
    then = saved.manifest.size
    try:
        state = saved.state_of(comm.rank % then)
        share = range(comm.rank, then, comm.size) if scattered_again else range(0)
        return state, [(rank, saved.state_of(rank, _is_of_rank)) for rank in share], ''
    except DataError as error:
        return {}, [], str(error)


def _is_of_rank(key: str) -> bool:
    return key == RANDOM or positions.is_of_iterators(key)


def _scatter_again(
    comm: CommunicatorBase,
    saved: SavedSet,
    trainer: Any,
    state: State,
    others: list[tuple[int, State]],
) -> list[str]:
    """Bring into `state` what this rank has to do of what the others had; return notes."""
    with comm.together('resume'):
        _check_replicated(saved, trainer, comm.size)
    then = dict(pair for pairs in comm.allgather_obj(others) for pair in pairs)
    states = [then[rank] for rank in range(saved.manifest.size)]
    dealt, notes = positions.deal_again(trainer, states, comm)
    state.update(dealt)
    texts = [str(each[RANDOM]) for each in states]
    state[RANDOM] = np.asarray(random_state.spread(texts, comm.rank))
    return [f'{saved.manifest.size} ranks then, {comm.size} now', *notes]


def _check_replicated(saved: SavedSet, trainer: Any, size: int) -> None:
    """Raise if the ranks trained different things."""
    different = [key for key in saved.manifest.differs if _is_trained(key, trainer)]
    if different:
        raise ArgumentError(
            f'resume: {saved.path} is of ranks with different models, expected '
            f'{saved.manifest.size} ranks but got {size}; they differ in {", ".join(different[:3])}'
            f'{" ..." if different[3:] else ""}. Start as many processes as then.'
        )


def _is_trained(key: str, trainer: Any) -> bool:
    """Tell a parameter or its optimizer's state from running statistics, which may differ."""
    if key.startswith('updater/optimizer:'):
        return True
    optimizers = getattr(trainer.updater, '_optimizers', {})
    return any(
        key == f'updater/model:{name}{path}'
        for name, optimizer in optimizers.items()
        for path, _ in optimizer.target.namedparams()
    )


def _into(comm: CommunicatorBase, saved: SavedSet, trainer: Any, state: State) -> None:
    """Bring trainer and random states to where `state` was taken. Collective."""
    with comm.together('resume'):
        positions.prepare(trainer, state)
        try:
            rehearse(trainer, state)
        except (KeyError, ValueError, TypeError) as error:
            raise ArgumentError(
                f'resume: {saved.path} does not fit this trainer ({type(error).__name__}: {error}).'
                ' Build model, optimizer, iterators and extensions as when it was taken.'
            ) from error
    with comm.together('resume'):
        NpzDeserializer(state).load(trainer)
        unsaved.restore(trainer, state)
    positions.borrow(trainer, state, comm)
    with comm.together('resume'):
        random_state.restore(str(state[RANDOM]), trainer)
