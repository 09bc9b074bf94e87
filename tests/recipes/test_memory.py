"""A model that cannot fit is told of before it is made."""

from __future__ import annotations

import math

import pytest

from mnx.recipes import memory
from mnx.recipes.document import EntryError
from tests.recipes import recipes
from tests.recipes.test_describe import planned

# float64, momentum: weights, gradients and state, and the first layer's output for 31 samples
MLP_BYTES = 8 * (3 * (64 * 33 + 33 + 33 * 17 + 17 + 17 * 10) + 31 * 33)


def test_a_byte_too_few_is_an_error_at_the_largest_layer() -> None:
    recipe, layers = planned(recipes.MLP)
    memory.check(recipe, layers, 1, 1, MLP_BYTES)
    with pytest.raises(EntryError, match=r'the 0\.0 GB of the machine') as caught:
        memory.check(recipe, layers, 1, 1, MLP_BYTES - 1)
    assert caught.value.path == ('layers', 0)


def test_a_part_of_the_batch_or_of_the_model_needs_less() -> None:
    recipe, layers = planned(recipes.MLP)
    memory.check(recipe, layers, 2, 1, MLP_BYTES - 8 * 15 * 33)
    memory.check(recipe, layers, 1, 2, 0.7 * MLP_BYTES)


def test_this_machine_has_memory() -> None:
    assert 2**20 < memory.available() <= math.inf
