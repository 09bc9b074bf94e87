"""What ranks of a grid hold and send, without any of them."""

from __future__ import annotations

import pytest

from mnx.recipes import describe, schema
from mnx.recipes.document import parse
from mnx.recipes.plan import LayerPlan, plan
from tests.recipes import recipes
from tests.recipes.running import EXAMPLES


def planned(text: str) -> tuple[schema.Recipe, list[LayerPlan]]:
    recipe = schema.validate(parse(text, 'r.yaml'))
    return recipe, plan(recipe, tuple(recipe.data.shape or (1, 8, 8)), 10)


@pytest.mark.parametrize('rows', [1, 2, 3])
@pytest.mark.parametrize('columns', [1, 2, 5])
def test_a_grid_holds_rows_of_models_and_all_samples(rows: int, columns: int) -> None:
    recipe, layers = planned(recipes.MLP)
    held = [describe.holding(recipe, layers, r, rows, columns) for r in range(rows * columns)]
    whole = 64 * 33 + 33 + 33 * 17 + 17 + 17 * 10
    assert sum(h.parameters for h in held) == rows * whole
    assert sum(h.samples for h in held) == columns * recipe.batch_size
    assert [h.state for h in held] == [h.parameters for h in held]
    assert all(h.gradients == (h.parameters if rows > 1 else 0) for h in held)
    assert all((h.activations > 0) == (columns > 1) for h in held)


def test_each_layer_counts_by_its_own_rule() -> None:
    recipe, layers = planned(recipes.RULES)
    sizes = {layer.name: sum(w.size for w in layer.weights) for layer in layers}
    arrays = {'dense1': 1, 'batch_normalization1': 1, 'dense2': 2, 'dense3': 2, 'dense4': 1}
    expected = sum(n * sizes[name] for name, n in arrays.items())  # dense5 learns by sgd
    assert describe.holding(recipe, layers, 0, 1, 1).state == expected


def test_megabytes_are_of_parameters_gradients_and_state() -> None:
    held = describe.Holding(1, 10**6, 10**6, 0, 0, 0)
    assert held.megabytes(8) == 24


def test_lines() -> None:
    recipe, layers = planned((EXAMPLES / 'convnet.yaml').read_text())
    lines = {line[0]: line[1:] for line in describe.layer_rows(recipe, layers, 2, 3)}
    assert lines['batch_normalization1'] == ('16 x 8 x 8', '32', '', 'sum 17, sum 32', 'sum 32')
    assert lines['dense1'] == ('64', '8,256', 'output', 'gather 2,048', 'sum 4,096')
    ranks = list(describe.rank_rows(recipe, layers, 2, 3))
    assert ranks[2] == ('2', '32', '7,914', '15,828', '0.13', '8,593', '7,914')
    assert len(ranks) == 6


def test_lines_of_one_process_send_nothing() -> None:
    recipe, layers = planned(recipes.RECURRENT)
    assert {line[3:] for line in describe.layer_rows(recipe, layers, 1, 1)} == {('', '', '')}
