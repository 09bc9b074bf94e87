"""Which optimizers trained: another one would take its predecessor's moments for its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return what has to be saved: the class of each optimizer, less what mnx wraps it in."""
    return {
        f'mnx/optimizer:{name}': np.asarray(type(actual(optimizer)).__name__)
        for name, optimizer in optimizers_of(trainer).items()
    }


def check(trainer: Any, state: State) -> None:
    """Raise `ValueError` if an optimizer is of another class than the saved one."""
    for key, name in capture(trainer).items():
        if key in state and str(state[key]) != str(name):
            raise ValueError(f'{key.removeprefix("mnx/")} was {state[key]}, and here is {name}')


def optimizers_of(trainer: Any) -> dict[str, Any]:
    """Return the optimizers of a trainer by name."""
    return dict(getattr(trainer.updater, '_optimizers', {}))


def actual(optimizer: Any) -> Any:
    """Return the optimizer that mnx has wrapped, or itself."""
    return getattr(optimizer, 'actual_optimizer', optimizer)
