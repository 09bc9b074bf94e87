"""Snapshots of a training on many ranks, and going on from them as if nothing had happened.

One npz file, which Chainer's own ``load_npz`` reads as rank 0's trainer::

    updater/model:main/l1/W ...         rank 0's trainer, under Chainer's own names
    mnx/format                          {"version": 1, "size": 3}
    mnx/random                          rank 0's random states
    mnx/rank:1/updater/iterator:main/order ...   what is different on rank 1
    mnx/rank:2/...                               and on rank 2

Parameters are equal on all ranks, so they are neither sent nor stored more than once: rank 0 tells
the digest of each of its values, and the others send only the values that differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from chainer.serializers import DictionarySerializer, NpzDeserializer
from chainer.training import Extension
from numpy.typing import NDArray

from mnx.errors import ArgumentError, DataError, MissingDataError
from mnx.training import random_state
from mnx.training.checkpoints import optimizer_names, unsaved
from mnx.training.checkpoints.rehearsal import rehearse
from mnx.training.whole_file import whole_file

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

State: TypeAlias = 'dict[str, NDArray[Any]]'

VERSION = 1
_FORMAT = 'mnx/format'
RANDOM = 'mnx/random'
ABSENT = 'mnx/absent'  # names of what rank 0 has and this rank has not


def snapshot(
    comm: CommunicatorBase,
    filename: str | Callable[[Any], str] = 'snapshot_iter_{.updater.iteration}',
) -> Snapshot:
    """Return an extension that saves the training on all ranks, in one file.

    Saved are the trainer (model, optimizer, iterators, extensions, triggers) of every rank, and
    the states of its random number generators; see `mnx.training.random_state` for which.

    Parameters
    ----------
    comm : CommunicatorBase
    filename : str or callable
        As in ``chainer.training.extensions.snapshot``: formatted with, or called with, the
        trainer. The file appears in ``trainer.out`` under this name when it is complete.

    Returns
    -------
    Snapshot
        Once per epoch by default. All ranks must extend their trainer by it, and it must be
        triggered on all of them at the same iteration.

    Warns
    -----
    UserWarning
        At the start of the training, on rank 0: an iterator shuffles by the global generator in a
        thread, as `MultiprocessIterator` does.

    Notes
    -----
    A resumed training goes on bit by bit, but for what other threads and processes draw. With
    `MultiprocessIterator`, give the order a generator of its own, and take snapshots at the ends of
    epochs, as is the default: between them the thread may be an epoch ahead. ::

        order = ShuffleOrderSampler(np.random.RandomState(comm.rank))
        MultiprocessIterator(dataset, 32, order_sampler=order)

    Random numbers that a data set draws in worker processes are drawn anew. `SerialIterator` and
    `MultithreadIterator` need nothing of this.

    See Also
    --------
    resume : Go on from such a file.
    """
    return Snapshot(comm, filename)


class Snapshot(Extension):
    """What `snapshot` returns. Calling it is collective."""

    trigger = 1, 'epoch'
    priority = -100  # after all others, so that their states are of this iteration
    default_name = 'snapshot'

    def __init__(self, comm: CommunicatorBase, filename: str | Callable[[Any], str]) -> None:
        self.comm = comm
        self.filename = filename

    def initialize(self, trainer: Any) -> None:
        """Warn of what will not go on bit by bit."""
        names = random_state.drawn_by_threads(trainer)
        if names and self.comm.rank == 0:
            warnings.warn(
                f'snapshot: iterator(s) {", ".join(names)} shuffle by the global random generator '
                'in a thread, so a resumed training will not go on bit by bit. Give them '
                'order_sampler=ShuffleOrderSampler(np.random.RandomState(seed)).',
                stacklevel=2,
            )

    def __call__(self, trainer: Any) -> None:
        """Save the training. Collective: all ranks call it, and all raise if it fails."""
        comm = self.comm
        with comm.together('snapshot'):
            mine = capture(trainer, comm.rank)
            found = digests(mine)
        roots = comm.bcast_obj(found)
        different = {key: mine[key] for key in mine if roots.get(key) != found[key]}
        if absent := [key for key in roots if key not in mine]:
            different[ABSENT] = np.asarray(absent)
        gathered = comm.gather_obj(different)
        with comm.together('snapshot'):
            if gathered is not None:
                write(Path(trainer.out) / self._name(trainer), merge(mine, gathered))

    def _name(self, trainer: Any) -> str:
        if callable(self.filename):
            return self.filename(trainer)
        return self.filename.format(trainer)


def resume(path: str | os.PathLike[str], trainer: Any, comm: CommunicatorBase) -> None:
    """Bring `trainer` and this process's random states to where a snapshot was taken.

    Collective: all ranks call it, with a trainer that was built as the saved one, before
    ``trainer.run()``. Rank 0 reads the file; each rank receives its own state. The training then
    goes on with the same bits as without the interruption.

    Parameters
    ----------
    path : path
        A file written by `snapshot`; it counts on rank 0. Like Chainer's own snapshots it is read
        with pickle: resume only from files you trust.
    trainer : chainer.training.Trainer
    comm : CommunicatorBase
        Of as many ranks as the snapshot.

    Raises
    ------
    MissingDataError, DataError
        There is no such file; it is damaged, or no snapshot of mnx (on all ranks).
    ArgumentError
        It was taken on another number of ranks, or of another kind of trainer (on all ranks).
    """
    common, own = None, None
    with comm.together('resume'):
        if comm.rank == 0:
            common, own = split(read(Path(path)), comm.size, str(path))
    common = comm.bcast_obj(common)
    own = comm.scatter_obj(own)
    with comm.together('resume'):
        _load(own_state(common, own), trainer, path)


def capture(trainer: Any, rank: int) -> State:
    """Return everything that has to be saved of this rank."""
    serializer = DictionarySerializer()
    serializer.save(trainer)
    state: State = {key: np.asarray(value) for key, value in serializer.target.items()}
    state |= optimizer_names.capture(trainer) | unsaved.capture(trainer)
    state[RANDOM] = np.asarray(random_state.capture(trainer, rank))
    return state


def merge(roots: State, different: list[State]) -> State:
    """Put rank 0's state and what is different on each rank into one dict."""
    facts = {'version': VERSION, 'size': len(different)}
    merged = {**roots, _FORMAT: np.asarray(json.dumps(facts))}
    for rank, state in enumerate(different):
        merged.update({f'{_prefix(rank)}{key}': value for key, value in state.items()})
    return merged


def split(merged: State, size: int, path: str) -> tuple[State, list[State]]:
    """Return rank 0's state, and for each rank what is different there."""
    if _FORMAT not in merged:
        raise DataError(
            f'resume: {path} is no snapshot of mnx, expected an entry {_FORMAT} but got none. '
            'Take it with mnx.extensions.snapshot.'
        )
    facts = json.loads(str(merged[_FORMAT]))
    if facts['version'] != VERSION:
        raise DataError(
            f'resume: {path} has another format, expected version {VERSION} but got '
            f'{facts["version"]}. Use the version of mnx that wrote it.'
        )
    if facts['size'] != size:
        raise ArgumentError(
            f'resume: {path} was taken on another number of ranks, expected {facts["size"]} but '
            f'got {size}. Start as many processes as then.'
        )
    common = {key: value for key, value in merged.items() if not key.startswith('mnx/rank:')}
    return common, [_with_prefix(merged, _prefix(rank)) for rank in range(size)]


def own_state(common: State, own: State) -> State:
    """Return the state of a rank, of rank 0's and what is different or absent on that rank."""
    state = {**common, **own}
    for key in state.pop(ABSENT, np.empty(0, np.str_)).tolist():
        del state[key]
    return state


def write(path: Path, state: State) -> None:
    """Write an npz file that appears under its name only when it is complete on the disk."""
    with whole_file(path) as file:
        np.savez(file, allow_pickle=True, **state)  # Chainer saves None as an object


def read(path: Path) -> State:
    """Return all entries of an npz file."""
    if not path.is_file():
        raise MissingDataError(f'resume: there is no file {path}. Check the name.')
    try:
        file = np.load(path, allow_pickle=True)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError('not an npz file')
        with file:
            return {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, AttributeError, pickle.UnpicklingError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise DataError(
            f'resume: {path} is cut short or damaged ({error}). Resume from an earlier snapshot.'
        ) from None


def _load(state: State, trainer: Any, path: object) -> None:
    try:
        rehearse(trainer, state)
        NpzDeserializer(state).load(trainer)
        unsaved.restore(trainer, state)
    except (KeyError, ValueError, TypeError) as error:
        raise ArgumentError(
            f'resume: {path} does not fit this trainer ({type(error).__name__}: {error}). '
            'Build model, optimizer, iterators and extensions as when it was taken.'
        ) from error
    random_state.restore(str(state[RANDOM]), trainer)


def digests(state: Mapping[str, NDArray[Any]]) -> dict[str, bytes]:
    """Return a checksum of each value, its dtype and its shape."""
    return {key: _digest(value) for key, value in state.items()}


def _digest(value: NDArray[Any]) -> bytes:
    digest = hashlib.blake2b(f'{value.dtype.str} {value.shape}'.encode(), digest_size=16)
    if value.dtype.hasobject:  # Chainer's way to save None
        digest.update(pickle.dumps(value))
    else:
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _prefix(rank: int) -> str:
    return f'mnx/rank:{rank}/'


def _with_prefix(merged: State, prefix: str) -> State:
    return {key[len(prefix) :]: v for key, v in merged.items() if key.startswith(prefix)}
