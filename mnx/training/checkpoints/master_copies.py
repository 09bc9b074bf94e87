"""The float32 copies of float16 parameters, in which a training goes on: see `mnx.optimizers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnx.optimizers import masters
from mnx.training.checkpoints.optimizer_names import actual, optimizers_of

if TYPE_CHECKING:
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return the copies of all optimizers' parameters."""
    return {
        f'{_prefix(name)}{path}': copy
        for name, optimizer in optimizers_of(trainer).items()
        for path, copy in masters.capture(actual(optimizer)).items()
    }


def restore(trainer: Any, state: State) -> None:
    """Set the copies to what `capture` returned; others are made anew from the parameters."""
    for name, optimizer in optimizers_of(trainer).items():
        prefix = _prefix(name)
        found = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        masters.restore(actual(optimizer), found)


def _prefix(name: str) -> str:
    return f'mnx/master:{name}'
