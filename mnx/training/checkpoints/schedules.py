"""Learning rates that Chainer's extensions have set.

When a training begins, also one that goes on, each of them sets the rate. `WarmupShift` and
`MultistepShift` set that of the first iteration; two for the same rate set each its own, whichever
came last. So the rates are saved as they were, and set behind the extensions' own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from chainer.training import extensions

if TYPE_CHECKING:
    from mnx.training.snapshot import State


def capture(trainer: Any) -> State:
    """Return the rate that each extension schedules."""
    rates = {name: getattr(*_rate_of(each, trainer), None) for name, each in _scheduled(trainer)}
    return {f'{_PREFIX}{n}': np.asarray(r) for n, r in rates.items() if isinstance(r, Real)}


def restore(trainer: Any, state: State) -> None:
    """Let the training begin with the rates that `capture` returned."""
    for name, extension in _scheduled(trainer):
        if (rate := state.get(f'{_PREFIX}{name}')) is not None:
            own = type(extension).initialize.__get__(extension)
            extension.initialize = functools.partial(_initialize, extension, own, rate.item())


_PREFIX = 'mnx/schedule:'

_KINDS = (
    extensions.ExponentialShift,
    extensions.InverseShift,
    extensions.LinearShift,
    extensions.MultistepShift,
    extensions.PolynomialShift,
    extensions.StepShift,
    extensions.WarmupShift,
)


def _initialize(extension: Any, own: Callable[[Any], None], rate: float, trainer: Any) -> None:
    """Do it once as in a training that goes on; then as ever."""
    del extension.initialize
    own(trainer)
    optimizer, attribute = _rate_of(extension, trainer)
    setattr(optimizer, attribute, rate)


def _scheduled(trainer: Any) -> Iterator[tuple[str, Any]]:
    """Yield Chainer's extensions that set an attribute of an optimizer, and their names."""
    for name, entry in getattr(trainer, '_extensions', {}).items():
        if isinstance(entry.extension, _KINDS):
            yield name, entry.extension


def _rate_of(extension: Any, trainer: Any) -> tuple[Any, str]:
    return extension._optimizer or trainer.updater.get_optimizer('main'), extension._attr
