"""Shapes, weights and messages of layers, as pure numbers."""

from __future__ import annotations

import numpy as np
import pytest

import mnx
from mnx.errors import ArgumentError
from mnx.recipes import schema
from mnx.recipes.document import parse
from mnx.recipes.grid import arrange
from mnx.recipes.network import Network
from mnx.recipes.plan import LayerPlan, Weight, plan
from tests.recipes import recipes

HEAD = 'batch_size: 2\nepochs: 1\noptimizer: {type: sgd}\n'


def plan_of(layers: str, shape: tuple[int, ...] = (1, 8, 8), head: str = '') -> list[LayerPlan]:
    text = f'{HEAD}{head}layers:\n' + ''.join(f'  - {{{layer}}}\n' for layer in layers.split('; '))
    found = parse(text, 'r.yaml')
    with found.explains():
        return plan(schema.validate(found), shape, 10)


@pytest.mark.parametrize('name', recipes.ALL)
def test_links_are_what_the_plan_says(name: str) -> None:
    recipe = schema.validate(parse(recipes.ALL[name], name))
    layers = plan(recipe, (1, 8, 8), 10)
    with mnx.create_communicator('local') as comm, arrange(comm, 1, 1) as grid:
        network = Network(layers, 2, grid)
    said = {f'/{x.name}/{w.name}': w.shape for x in layers for w in x.weights}
    assert {n: p.shape for n, p in network.namedparams()} == said
    y = np.zeros((2, 1, 8, 8), 'f')
    for layer in layers:  # each stage returns what was said, and then its activation
        y = network[layer.name](y) if layer.weights else np.zeros((2, *layer.outputs), 'f')
        assert y.shape == (2, *layer.outputs)


def test_parts_add_up() -> None:
    for axis in (0, 1):
        weight = Weight('W', (10, 7), axis)
        assert sum(weight.held(rank, 4) for rank in range(4)) == 70
    assert Weight('W', (10, 7)).held(2, 4) == 70
    assert [Weight('b', (10,), 0).held(rank, 4) for rank in range(4)] == [2, 3, 2, 3]


def messages_of(layer: LayerPlan, samples: int = 1) -> list[tuple[str, str, int]]:
    return [(m.when, m.kind, m.numbers(samples)) for m in layer.messages]


def test_a_first_layer_sends_nothing_in_backward() -> None:
    first, _, second = plan_of('type: dense, units: 3; type: dropout; type: dense, units: 10')
    assert messages_of(first, 5) == [('forward', 'gather', 15)]
    assert messages_of(second, 5) == [('forward', 'gather', 50), ('backward', 'sum', 15)]


def test_behind_a_convolution_no_layer_is_the_first() -> None:
    _, dense = plan_of(
        'type: convolution, channels: 2, kernel: 3; type: dense, units: 10, partition: input'
    )
    assert messages_of(dense) == [('forward', 'sum', 10), ('backward', 'gather', 72)]


def test_pairs_leave_out_layers_that_say_otherwise() -> None:
    found = plan_of(
        'type: dense, units: 2; type: dense, units: 3; type: dense, units: 4, partition: output; '
        'type: dense, units: 5; type: dropout; type: dense, units: 10',
        head='partition: pairs\n',
    )
    assert [messages_of(x) for x in found if x.weights] == [
        [],
        [('forward', 'sum', 3)],
        [('forward', 'gather', 4), ('backward', 'sum', 3)],
        [('forward', 'gather', 5), ('backward', 'sum', 4)],
        [('forward', 'gather', 10), ('backward', 'sum', 5)],
    ]


def test_names() -> None:
    found = plan_of('type: dense, units: 2; type: dense, units: 3, name: b; type: dense, units: 10')
    assert [x.name for x in found] == ['dense1', 'b', 'dense3']


WRONG = {
    'type: dense, units: 10, name: forward': "5: layers[0].name: 'forward' is a word of Chainer",
    'type: dense, units: 10, name: name': "5: layers[0].name: 'name' is a word of Chainer",
    'type: dense, units: 9': '5: layers[0]: the last layer returns 9 for each sample, expected 10',
    'type: dense, units: 9; type: pooling, kernel: 2': '6: layers[1]: pooling needs a picture',
    'type: convolution, channels: 2, kernel: [3, 9]': '5: layers[0].kernel: a window of 3x9 does',
    'type: pooling, kernel: 2, pad: 2': '5: layers[0].pad: expected less than the kernel',
    'type: dense, units: 9; type: recurrent, units: 10': '6: layers[1]: a recurrent layer needs',
    'type: dense, units: 9, name: dense2; type: dense, units: 10': (
        "6: layers[1]: layers[0] is called 'dense2' already"
    ),
    'type: dense, units: 9, name: a; type: dense, units: 10, name: a': (
        "6: layers[1].name: layers[0] is called 'a' already"
    ),
}


@pytest.mark.parametrize('number', range(len(WRONG)))
def test_layers_that_do_not_fit(number: int) -> None:
    layers, expected = list(WRONG.items())[number]
    with pytest.raises(ArgumentError) as caught:
        plan_of(layers)
    assert str(caught.value).startswith(f'r.yaml:{expected}')
