"""The powers that Chainer's MSVAG multiplies up, and does not save."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from chainer.optimizers.msvag import MSVAGRule

from mnx.training.checkpoints.optimizer_names import optimizers_of

if TYPE_CHECKING:
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return the power of each parameter that has one."""
    return {key: np.asarray(rule.beta_power) for key, rule in _rules(trainer)}


def restore(trainer: Any, state: State) -> None:
    """Set the powers to what `capture` returned."""
    for key, rule in _rules(trainer):
        if key in state:
            rule.beta_power = state[key].item()


def _rules(trainer: Any) -> Iterator[tuple[str, Any]]:
    for name, optimizer in optimizers_of(trainer).items():
        for path, param in optimizer.target.namedparams() if optimizer.target else ():
            if isinstance(param.update_rule, MSVAGRule):
                yield f'mnx/beta_power:{name}{path}', param.update_rule
