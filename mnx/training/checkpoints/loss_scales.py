"""Dynamic loss scales: Chainer does not save them, and a resumed training would begin with 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mnx.training.checkpoints.optimizer_names import actual, optimizers_of

if TYPE_CHECKING:
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return the scale of each optimizer that adapts it, and whether it ever was too large."""
    return {
        key: np.array([optimizer._loss_scale, optimizer._loss_scaling_isnan_ever], np.float64)
        for key, optimizer in _dynamic(trainer).items()
    }


def restore(trainer: Any, state: State) -> None:
    """Set the scales to what `capture` returned; one that is fixed now stays as it is."""
    for key, optimizer in _dynamic(trainer).items():
        if key in state:
            scale, is_nan_ever = state[key].tolist()
            optimizer._loss_scale = scale
            optimizer._loss_scaling_isnan_ever = bool(is_nan_ever)


def _dynamic(trainer: Any) -> dict[str, Any]:
    """Return the optimizers that adapt their loss scale, by the names of what is saved of them."""
    found = {name: actual(optimizer) for name, optimizer in optimizers_of(trainer).items()}
    return {
        f'mnx/loss_scale:{name}': optimizer
        for name, optimizer in found.items()
        if getattr(optimizer, '_loss_scaling_is_dynamic', False)
    }
