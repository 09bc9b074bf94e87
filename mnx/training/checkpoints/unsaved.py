"""What Chainer does not save of a training, and what one that is resumed would lack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnx.training.checkpoints import (
    beta_powers,
    fresh_rules,
    loss_scales,
    master_copies,
    noises,
    schedules,
)

if TYPE_CHECKING:
    from mnx.training.snapshot import State

_PARTS = beta_powers, fresh_rules, loss_scales, master_copies, noises, schedules


def capture(trainer: Any) -> State:
    """Return what has to be saved besides what Chainer saves."""
    return {key: value for part in _PARTS for key, value in part.capture(trainer).items()}


def restore(trainer: Any, state: State) -> None:
    """Bring it to where `capture` found it, when all that Chainer loads is loaded."""
    for part in _PARTS:
        part.restore(trainer, state)
