"""Loading that changes nothing: it raises what loading would raise, so that nothing half-loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
            _check_alike(where, stored, value.shape, value.dtype)
            probe = np.empty(value.shape, value.dtype)
        NpzDeserializer(self._state, self._path)(key, probe)
        return value

    def check_array(self, key: str, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise unless there is such an array: the whole of one of which a rank has a part."""
        where = self._path + key.lstrip('/')
        stored = self._state[where]
        self._read.add(where)
        if stored[()] is not None:
            _check_alike(where, stored, shape, dtype)

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
    optimizer_names.check(trainer, state)
    rehearsal = Rehearsal(state)
    with _fresh_rules_stay_fresh(trainer):
        trainer.serialize(rehearsal)
    rehearsal.check_all_read()


@contextmanager
def _fresh_rules_stay_fresh(trainer: Any) -> Iterator[None]:
    """Take back the states that Chainer's rules make to ask for them, where one is missing."""
    optimizers = optimizer_names.optimizers_of(trainer).values()
    params = (p for o in optimizers if o.target is not None for p in o.target.params())
    fresh = [p.update_rule for p in params if p.update_rule and p.update_rule.state is None]
    try:
        yield
    finally:
        for rule in fresh:
            rule._state = None


def _check_alike(where: str, stored: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if stored.shape != shape:
        raise ValueError(f'{where} has shape {stored.shape}, and here {shape}')
    if stored.dtype != dtype:
        raise ValueError(f'{where} has dtype {stored.dtype}, and here {dtype}')
