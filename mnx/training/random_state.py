"""The states of a process's random number generators, as JSON.

===========  =======================================================================
``numpy``    the global generator: shuffling, initialisers, dropout on a CPU
``python``   the module `random`
``cupy``     a seed, see below; only where CuPy's generator has been used
``orders``   generators of their own in the order samplers of the updater's iterators
===========  =======================================================================

CuPy's generator of the current device cannot be read out. It gets a new seed whenever the states
are captured, made from all the other states; restoring gives it the same seed. So a run that was
interrupted goes on as one that was not, provided both capture at the same iterations.

What other threads and processes draw is not in step with this: a MultiprocessIterator draws the
order of the next epoch in a thread, ahead of time, and its workers have generators of their own.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from chainer.backends import cuda

_Generator = (np.random.RandomState, np.random.Generator, random.Random)


def capture(trainer: Any, rank: int = 0) -> str:
    """Return the states of all generators that are found, and reseed CuPy's."""
    states: dict[str, Any] = {
        'numpy': _get(np.random.mtrand._rand),
        'python': _get(random),
        'orders': {name: _get(generator) for name, generator in _in_orders(trainer)},
    }
    cupy_random = _cupy_random()
    if cupy_random is not None:
        states['cupy'] = _seed_from(states, trainer.updater.iteration, rank)
        cupy_random.seed(states['cupy'])
    return json.dumps(states)


def restore(text: str, trainer: Any) -> None:
    """Set all generators to what `capture` returned."""
    states = json.loads(text)
    _set(np.random.mtrand._rand, states['numpy'])
    _set(random, states['python'])
    for name, generator in _in_orders(trainer):
        if name in states['orders']:
            _set(generator, states['orders'][name])
    if 'cupy' in states:
        _seed_cupy(states['cupy'])


def _seed_cupy(seed: int) -> None:
    if not cuda.available:  # a training that goes on on CPUs draws nothing there
        warnings.warn(
            'resume: random numbers were drawn on a GPU, and here is none; those drawn on the CPU '
            'in their place are others.',
            stacklevel=2,
        )
        return
    import cupy

    cupy.random.seed(seed)


def drawn_by_threads(trainer: Any) -> list[str]:
    """Return the names of iterators that draw from the global generator in a thread."""
    iterators = getattr(trainer.updater, '_iterators', {})
    return [
        name
        for name, iterator in sorted(iterators.items())
        if hasattr(iterator, 'n_prefetch')
        and np.random.mtrand._rand in _generators(getattr(iterator, 'order_sampler', None)).values()
    ]


def spread(texts: list[str], rank: int) -> str:
    """Return the states for a rank of a training that goes on with another number of ranks.

    Parameters
    ----------
    texts : list of str
        What `capture` returned on each of the ranks there were.
    rank : int
        The first ranks go on with the states of theirs. Those that are new get generators that
        all ranks had alike, and others with a new seed.
    """
    if rank < len(texts):
        return texts[rank]
    states = [json.loads(text) for text in texts]
    seed = _seed_from(states[0], len(texts), rank)
    return json.dumps(_merged(states, seed))


def _merged(states: list[Any], seed: int) -> Any:
    """Return the first of the states where all are equal, and a fresh one where they are not."""
    first = states[0]
    if all(state == first for state in states):
        return first
    if isinstance(first, int):
        return seed
    if isinstance(first, list):
        return _get(random.Random(seed))
    if 'has_gauss' in first:
        return _get(np.random.RandomState(seed))
    if 'bit_generator' in first:
        return _plain(getattr(np.random, first['bit_generator'])(seed).state)
    return {key: _merged([state.get(key) for state in states], seed) for key in first}


def _in_orders(trainer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the generators that belong to order samplers, with a name for each."""
    iterators = getattr(trainer.updater, '_iterators', {})
    for name, iterator in sorted(iterators.items()):
        sampler = getattr(iterator, 'order_sampler', None)
        for attribute, value in _generators(sampler).items():
            yield f'{name}.{attribute}', value


def _generators(sampler: Any) -> dict[str, Any]:
    attributes = sorted(getattr(sampler, '__dict__', {}).items())
    return {name: value for name, value in attributes if isinstance(value, _Generator)}


def _get(generator: Any) -> Any:
    """Return the state of a generator in numbers, strings, lists and dicts."""
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _plain(generator.getstate())


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        version, numbers, gauss_next = state
        generator.setstate((version, tuple(numbers), gauss_next))


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, (tuple, list)):
        return [_plain(value) for value in state]
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state


def _seed_from(states: dict[str, Any], iteration: int, rank: int) -> int:
    text = json.dumps([states, iteration, rank])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), 'little')


def _cupy_random() -> Any:
    """Return ``cupy.random`` if a generator of it is in use, so that none is made needlessly."""
    generator = sys.modules.get('cupy.random._generator')
    in_use = getattr(generator, '_random_states', None)
    return sys.modules['cupy.random'] if in_use else None
