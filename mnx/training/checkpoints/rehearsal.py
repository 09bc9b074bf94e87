"""Loading that changes nothing: it raises what loading would raise, so that nothing half-loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from chainer.serializer import Deserializer
from chainer.serializers import NpzDeserializer

from mnx.arrays import is_array
from mnx.training.checkpoints import optimizer_names

if TYPE_CHECKING:
    from mnx.training.snapshot import State


class Rehearsal(Deserializer):
    """Loads a trainer, but its updater: model, optimizer and iterators get what they have.

    Extensions and triggers make something else of what they load, so they do load.

    Parameters
    ----------
    state : dict
    path : str
        What stands before the names.
    """

    def __init__(self, state: State, path: str = '', read: set[str] | None = None) -> None:
        self._state = state
        self._path = path
        self._read = set() if read is None else read

    def __getitem__(self, key: str) -> Deserializer:
        if not self._path and key != 'updater':
            return NpzDeserializer(self._state)[key]
        return Rehearsal(self._state, f'{self._path}{key.strip("/")}/', self._read)

    def __call__(self, key: str, value: Any) -> Any:
        """Raise if nothing could be loaded in place of `value`; return it."""
        where = self._path + key.lstrip('/')
        stored = self._state[where]
        self._read.add(where)
        probe = value
        if is_array(value) and stored[()] is not None:
            _check_alike(where, stored, value)
            probe = np.empty(value.shape, value.dtype)
        NpzDeserializer(self._state, self._path)(key, probe)
        return value

    def check_all_read(self) -> None:
        """Raise if something of a model was saved that nothing here has asked for."""
        models = (key for key in self._state if key.startswith('updater/model:'))
        unread = sorted(key for key in models if key not in self._read)
        if unread:
            raise ValueError(f'{unread[0]} was saved, and is nothing here')


def rehearse(trainer: Any, state: State) -> None:
    """Raise what loading would raise, or if the state is not of this model and these optimizers.

    Raises
    ------
    KeyError, ValueError, TypeError
        Model, optimizers and iterators are as they were.
    """
    rehearsal = Rehearsal(state)
    trainer.serialize(rehearsal)
    rehearsal.check_all_read()
    optimizer_names.check(trainer, state)


def _check_alike(where: str, stored: Any, value: Any) -> None:
    if stored.shape != value.shape:
        raise ValueError(f'{where} has shape {stored.shape}, and here {value.shape}')
    if stored.dtype != value.dtype:
        raise ValueError(f'{where} has dtype {stored.dtype}, and here {value.dtype}')
