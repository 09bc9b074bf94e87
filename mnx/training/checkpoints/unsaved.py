"""What Chainer does not save of a training, and what one that is resumed would lack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnx.training.checkpoints import loss_scales, master_copies, schedules

if TYPE_CHECKING:
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return what has to be saved besides what Chainer saves."""
    return (
        loss_scales.capture(trainer) | master_copies.capture(trainer) | schedules.capture(trainer)
    )


def restore(trainer: Any, state: State) -> None:
    """Bring it to where `capture` found it, when all that Chainer loads is loaded."""
    for part in (loss_scales, master_copies, schedules):
        part.restore(trainer, state)
