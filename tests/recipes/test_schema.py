"""What recipes may say; every mistake is one line with line and key."""

from __future__ import annotations

import pytest

from mnx.errors import ArgumentError
from mnx.recipes import schema
from mnx.recipes.document import parse
from tests.recipes import recipes
from tests.recipes.running import EXAMPLES

BASE = """\
batch_size: 8
epochs: 2
learning_rules: {m: &m {type: momentum, momentum: 0.5}}
layers:
  - {type: dense, units: 10}
  - {type: convolution, channels: 2, kernel: 3}
optimizer: *m
"""


def recipe_of(text: str) -> schema.Recipe:
    return schema.validate(parse(text, 'r.yaml'))


def test_values_and_defaults() -> None:
    found = recipe_of(BASE)
    assert found.optimizer == schema.Momentum(type='momentum', momentum=0.5, learning_rate=0.01)
    dense, convolution = found.layers
    assert (dense.units, dense.activation, dense.bias) == (10, 'identity', True)
    assert (convolution.kernel, convolution.stride, convolution.pad) == ([3, 3], [1, 1], [0, 0])
    assert (found.dtype, found.seed, found.cost) == ('float32', 0, 'cross_entropy')
    assert found.metrics.test == ['accuracy']


@pytest.mark.parametrize('name', ['mlp.yaml', 'convnet.yaml'])
def test_the_examples_are_right(name: str) -> None:
    recipe_of((EXAMPLES / name).read_text())


@pytest.mark.parametrize('name', recipes.ALL)
def test_all_kinds_of_layers_and_rules(name: str) -> None:
    recipe_of(recipes.ALL[name])


WRONG = [
    ('units: 10', 'unitz: 10', '5: layers[0].unitz: unknown key, expected one of name,'),
    ('dense', 'danse', "5: layers[0].type: expected one of 'dense', 'convolution',"),
    ('type: dense, ', '', '5: layers[0].type: is missing'),
    ('type: dense, ', 'type: [a], ', '5: layers[0].type: expected one of'),
    (', units: 10', '', '5: layers[0].units: is missing'),
    ('units: 10', 'units: 0', '5: layers[0].units: expected a number greater than 0, but got 0'),
    ('units: 10', 'units: yes', '5: layers[0].units: expected a valid integer, but got True'),
    ('units: 10', "units: '9'", "5: layers[0].units: expected a valid integer, but got '9'"),
    ('{type: dense, units: 10}', '12', '5: layers[0]: expected a mapping of keys, but got 12'),
    (
        'kernel: 3',
        'kernel: [3, a]',
        '6: layers[1].kernel[1]: expected a valid integer',
    ),
    ('kernel: 3', 'kernel: 0', '6: layers[1].kernel: expected a number greater than 0, but got 0'),
    ('kernel: 3', 'kernel: [1, 2, 3]', '6: layers[1].kernel: List should have at most 2'),
    ('momentum: 0.5', 'momentum: 1', '3: learning_rules.m.momentum: expected a number less than 1'),
    ('momentum: 0.5', 'momentum: .nan', '3: learning_rules.m.momentum: expected a finite number'),
    ('batch_size: 8', 'batch_size: 8.5', '1: batch_size: expected a valid integer, but got 8.5'),
    ('optimizer: *m', '', '1: optimizer: is missing'),
    ('optimizer: *m', 'optimizer: *m\n7: 8', '8: 7: unknown key'),
    ('epochs: 2', 'epochs: 2\ncost: least', "3: cost: expected 'cross_entropy', 'binary_cross"),
    ('epochs: 2', 'epochs: 2\nmetrics: {test: [f1]}', "3: metrics.test[0]: expected 'accuracy',"),
    ('epochs: 2', 'epochs: 2\ndata: {fraction: 2}', '3: data.fraction: expected a number less'),
    ('epochs: 2', 'epochs: 2\nseed: -1', '3: seed: expected a number greater than or equal to 0'),
    ('epochs: 2', 'epochs: 2\nsnapshot: x.npz', '3: snapshot: expected a mapping of keys'),
    ('epochs: 2', 'epochs: 2\nschedule: {type: step}', '3: schedule.epochs: is missing'),
    (
        'units: 10',
        'units: 10, bias_init: {type: he_normal}',
        "5: layers[0].bias_init.type: expected one of 'constant', 'uniform', 'gaussian', but got",
    ),
    (BASE, 'words', "1: expected a mapping of keys, but got 'words'"),
    (BASE, '- a', "1: expected a mapping of keys, but got ['a']"),
]


@pytest.mark.parametrize('number', range(len(WRONG)))
def test_mistakes_are_told_in_one_line(number: int) -> None:
    right, wrong, expected = WRONG[number]
    assert right in BASE
    with pytest.raises(ArgumentError) as caught:
        recipe_of(BASE.replace(right, wrong))
    assert str(caught.value).startswith(f'r.yaml:{expected}')
    assert '\n' not in str(caught.value)


def test_several_mistakes_are_several_lines() -> None:
    with pytest.raises(ArgumentError) as caught:
        recipe_of(BASE.replace('units: 10', 'units: x').replace('epochs: 2', 'epochs: 0'))
    lines = str(caught.value).splitlines()
    assert [line.split(': ')[:2] for line in lines] == [
        ['r.yaml:2', 'epochs'],
        ['r.yaml:5', 'layers[0].units'],
    ]
