"""Gradient noise that is the same on all ranks.

`chainer.optimizer_hooks.GradientNoise` draws from the global generator, which is another one on
each rank. There its noise would drive the copies of the model apart. So while hooks act, all ranks
draw from a generator with one seed, which is the next number of rank 0's global generator; then
each goes on with its own. A model with all-reduces in its graph has a plain optimizer, whose hooks
ask for the same numbers parameter by parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.optimizer_hooks import GradientNoise

if TYPE_CHECKING:
    from mnx.communicators import Communicator


@contextmanager
def same_noise(optimizer: chainer.Optimizer, comm: Communicator) -> Iterator[None]:
    """Let the hooks of `optimizer` and of its parameters draw the same numbers on all ranks.

    Collective if one of them is gradient noise. A single process draws as in plain Chainer.
    """
    if comm.size == 1 or not any(isinstance(hook, GradientNoise) for hook in _all_hooks(optimizer)):
        yield
        return
    seed = comm.bcast_obj(_next_number() if comm.rank == 0 else None)
    with _seeded_numpy(seed), _seeded_device(optimizer.target.xp, seed):
        yield


def _all_hooks(optimizer: chainer.Optimizer) -> Iterator[Any]:
    """Yield the hooks that act on all parameters, and those of single ones."""
    yield from hooks_of(optimizer)
    for param in optimizer.target.params():
        if param.update_rule is not None:
            yield from hooks_of(param.update_rule)


def hooks_of(hooked: Any) -> list[Any]:
    """Return the hooks of an optimizer, which act on all parameters, or of an update rule."""
    hookable = hooked._hookable
    return [*hookable._pre_update_hooks.values(), *hookable._post_update_hooks.values()]


def _next_number() -> int:
    return int(np.random.mtrand._rand.randint(2**32, dtype=np.uint32))


@contextmanager
def _seeded_numpy(seed: int) -> Iterator[None]:
    generator = np.random.mtrand._rand  # the global one
    own = generator.get_state()
    generator.seed(seed)
    try:
        yield
    finally:
        generator.set_state(own)


@contextmanager
def _seeded_device(xp: Any, seed: int) -> Iterator[None]:
    """Put a generator of CuPy in the place of the current device's own, if the model is there."""
    if xp is np:
        yield
        return
    own = xp.random.get_random_state()
    xp.random.set_random_state(xp.random.RandomState(seed))
    try:
        yield
    finally:
        xp.random.set_random_state(own)


class SameNoise:
    """The same numbers on all ranks, for one parameter after another of a model they share.

    Attributes
    ----------
    seed : int or None
        None before the first draw.
    calls : int
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.seed: int | None = None
        self.calls = 0

    @contextmanager
    def drawn(self, xp: Any) -> Iterator[None]:
        """Let what is drawn inside be the same. Collective the first time, alike on all ranks."""
        if self._comm.size == 1:
            yield
            return
        if self.seed is None:
            self.seed = self._comm.bcast_obj(_next_number() if self._comm.rank == 0 else None)
        self.calls += 1
        seed = (self.seed + self.calls) % 2**32
        with _seeded_numpy(seed), _seeded_device(xp, seed):
            yield
