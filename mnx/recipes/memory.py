"""Whether a model fits into memory: asked before it is made, while it still is a line of a file."""

from __future__ import annotations

import math
import os

from mnx.recipes import describe, schema
from mnx.recipes.document import EntryError
from mnx.recipes.plan import LayerPlan


def check(
    recipe: schema.Recipe, layers: list[LayerPlan], rows: int, columns: int, memory: float
) -> None:
    """Raise if a rank needs more than `memory` bytes for sure: a pure function.

    Counted are what it holds (parameters, gradients, the learning rules' state), or the layer that
    is drawn whole before it is split, whichever is more, and the largest activation. A training
    needs more than that.

    Raises
    ------
    EntryError
        At the layer that needs most.
    """
    itemsize = 8 if recipe.dtype == 'float64' else 4
    whole = [itemsize * sum(w.size for w in layer.weights) for layer in layers]
    samples = -(-recipe.batch_size // rows)
    returned = [itemsize * samples * math.prod(layer.outputs) for layer in layers]
    held = 1e6 * describe.holding(recipe, layers, 0, rows, columns).megabytes(itemsize)
    needed = max(held, *whole) + max(returned)
    if needed <= memory:
        return
    most = max(range(len(layers)), key=lambda i: whole[i] + returned[i])
    raise EntryError(
        ('layers', most),
        f'{whole[most] / 1e9:,.1f} GB of parameters and {returned[most] / 1e9:,.1f} GB returned; '
        f'each process of this training needs {needed / 1e9:,.1f} GB or more, expected at most '
        f'the {memory / 1e9:,.1f} GB of the machine. Make the layers smaller',
    )


def available() -> float:
    """Return how many bytes of memory this machine has; infinite if it does not tell."""
    try:
        return float(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    except (AttributeError, OSError, ValueError):
        return math.inf
