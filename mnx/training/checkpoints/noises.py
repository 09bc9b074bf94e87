"""Where the noise stands that all copies of a model with `inject_allreduce` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mnx.gradients.injection import noises_of
from mnx.training.checkpoints.optimizer_names import optimizers_of

if TYPE_CHECKING:
    from mnx.gradients.noise import SameNoise
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return the seed and the number of draws of each noise that has been drawn."""
    return {
        key: np.array([noise.seed, noise.calls], np.int64)
        for key, noise in _noises(trainer).items()
        if noise.seed is not None
    }


def restore(trainer: Any, state: State) -> None:
    """Let the noise go on from what `capture` returned, or begin."""
    for key, noise in _noises(trainer).items():
        noise.seed, noise.calls = state[key].tolist() if key in state else (None, 0)


def _noises(trainer: Any) -> dict[str, SameNoise]:
    return {
        f'mnx/noise:{name}{path}': noise
        for name, optimizer in optimizers_of(trainer).items()
        if optimizer.target is not None
        for path, noise in noises_of(optimizer.target).items()
    }
