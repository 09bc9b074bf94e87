"""Loading that changes nothing: it raises what loading would raise, so that nothing half-loads."""

from __future__ import annotations

from typing import Any

import numpy as np
from chainer.serializer import Deserializer
from chainer.serializers import NpzDeserializer

from mnx.arrays import is_array
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

    def __init__(self, state: State, path: str = '') -> None:
        self._state = state
        self._path = path

    def __getitem__(self, key: str) -> Deserializer:
        if not self._path and key != 'updater':
            return NpzDeserializer(self._state)[key]
        return Rehearsal(self._state, f'{self._path}{key.strip("/")}/')

    def __call__(self, key: str, value: Any) -> Any:
        """Raise if nothing could be loaded in place of `value`; return it."""
        stored = self._state[self._path + key.lstrip('/')]
        probe = value
        if is_array(value) and stored[()] is not None:
            if stored.shape != value.shape:
                where = self._path + key
                raise ValueError(f'{where} has shape {stored.shape}, and here {value.shape}')
            probe = np.empty(value.shape, value.dtype)
        NpzDeserializer(self._state, self._path)(key, probe)
        return value
