"""Update rules without a state, as of an optimizer whose first update is yet to come.

Chainer saves nothing of them, and then cannot load: it asks for what a state would have. It leaves
a rule alone where that is None.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from mnx.training.checkpoints.optimizer_names import optimizers_of

if TYPE_CHECKING:
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return None by the name of each thing that a rule's first state would have."""
    return {
        f'updater/optimizer:{name}{path}/{key}': np.asarray(None)
        for name, optimizer in optimizers_of(trainer).items()
        if optimizer.target is not None
        for path, param in optimizer.target.namedparams()
        if param.update_rule is not None and param.update_rule.state is None
        for key in _keys(param.update_rule)
    }


def restore(trainer: Any, state: State) -> None:
    """Do nothing: Chainer has loaded them."""


def _keys(rule: Any) -> list[str]:
    """Return what the state of such a rule consists of."""
    other, array = copy.copy(rule), np.empty(1, np.float32)
    other._state = {}
    other.init_state(chainer.Variable(array, grad=array))
    return list(other._state)
