"""Run a recipe in this process, on a grid of the suite's ranks or alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import mnx
from mnx.communicators import Communicator
from mnx.recipes import schema, training
from mnx.recipes.document import Document, parse
from mnx.recipes.grid import arrange
from tests.launching import ROOT
from tests.links.training import wholes

EXAMPLES = ROOT / 'examples' / 'mnist'


def document(text: str, **changes: Any) -> Document:
    """Return a recipe's document, with other values for some of its topmost keys."""
    found = parse(text, 'recipe.yaml')
    found.value.update(changes)
    return found


@contextmanager
def session(
    found: Document, comm: Communicator, shape: tuple[int, int]
) -> Iterator[training.Session]:
    """Make a training ready to run on the ranks of `comm`. Collective."""
    recipe = schema.validate(found)
    samples = training.load(recipe, found, comm)
    layers = training.plan_of(recipe, found, samples)
    with arrange(comm, *shape) as grid:
        yield training.Session(recipe, layers, samples, grid)


def train(
    found: Document, comm: Communicator, shape: tuple[int, int]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train; return what one process would save, with the losses of all epochs, and the results."""
    with session(found, comm, shape) as made:
        curve: list[float] = []
        made.trainer.extend(
            lambda trainer: curve.append(trainer.observation['train/loss']),
            name='curve',
            trigger=(1, 'epoch'),
        )
        results = made.run()
        state = wholes(made.trainer)
    state = {k: v for k, v in state.items() if k.startswith('updater/')}
    return {**state, 'curve': np.array(curve)}, results


def alone(found: Document) -> tuple[dict[str, Any], dict[str, float]]:
    """Train in one process."""
    with mnx.create_communicator('local') as comm:
        return train(found, comm, (1, 1))


def shapes(size: int) -> list[tuple[int, int]]:
    """Return all grids of `size` ranks."""
    return [(rows, size // rows) for rows in range(1, size + 1) if size % rows == 0]
