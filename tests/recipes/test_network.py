"""Layers of a plan as links: beside Chainer's own, and split over the ranks beside the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.links import ParallelLinear
from mnx.links.parallelize import ALONE
from mnx.recipes import network, schema
from mnx.recipes.grid import Grid, arrange
from mnx.recipes.network import Dropout, Network, Place
from tests.launching import alone
from tests.links.training import wholes
from tests.recipes.test_plan import plan_of

B = 6
X = np.random.RandomState(3).standard_normal((B, 1, 8, 8))


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    with chainer.using_config('dtype', np.float64):
        yield


def network_of(grid: Grid, layers: str, head: str = '') -> Network:
    np.random.seed(5)
    return Network(plan_of(layers, head=head), B, grid)


def of_one_process(layers: str) -> Network:
    with mnx.create_communicator('local') as comm, arrange(comm, 1, 1) as grid:
        return network_of(grid, layers)


DENSE = 'type: dense, units: 7, activation: tanh; type: dense, units: 10'
SPLIT = {
    'dense': DENSE,
    'convolution': 'type: convolution, channels: 2, kernel: 3; type: dense, units: 10',
    'lstm': 'type: recurrent, units: 5; type: dense, units: 10',
    'gru': 'type: recurrent, units: 5, cell: gru, output: all; type: dense, units: 10',
}


@pytest.mark.parametrize('head', ['', 'partition: pairs\n'], ids=['output', 'pairs'])
@pytest.mark.parametrize('name', SPLIT)
def test_split_over_a_row(comm: Communicator, name: str, head: str) -> None:
    """The same values, saved alike, as in one process."""
    whole = of_one_process(SPLIT[name])
    with arrange(comm, 1, comm.size) as grid:
        made = network_of(grid, SPLIT[name], head)
        np.testing.assert_allclose(made(X).array, whole(X).array, rtol=1e-10, atol=1e-13)
        found, expected = wholes(made), wholes(whole)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)


def test_batch_normalization_over_a_column(comm: Communicator) -> None:
    layers = 'type: batch_normalization; type: dense, units: 10'
    expected = of_one_process(layers)(X).array
    with arrange(comm, comm.size, 1) as grid:
        found = network_of(grid, layers)(grid.share_of(X))
        np.testing.assert_allclose(found.array, grid.share_of(expected), rtol=1e-10, atol=1e-13)


def test_dropout_takes_the_same_units_however_the_samples_are_spread(comm: Communicator) -> None:
    x = chainer.Variable(np.ones((B, 40)))
    with mnx.create_communicator('local') as one, arrange(one, 1, 1) as grid:
        np.random.seed(2)
        expected = Dropout(0.25, Place(grid, B))(x).array
        following = np.random.random()
    assert set(np.unique(expected)) == {0.0, 1 / 0.75}
    assert abs((expected == 0).mean() - 0.25) < 0.1
    with arrange(comm, comm.size, 1) as grid:
        np.random.seed(2)
        mine = chainer.Variable(np.ones((len(grid.share_of(x.array)), 40)))
        dropout = Dropout(0.25, Place(grid, B))
        np.testing.assert_array_equal(dropout(mine).array, grid.share_of(expected))
        assert np.random.random() == following
        with chainer.using_config('train', False):
            assert dropout(mine) is mine


def test_which_link_is_linear(comm: Communicator) -> None:
    with arrange(comm, 1, comm.size) as grid:
        for role, kind in (
            (None, L.Linear),
            (ALONE, ParallelLinear if comm.size > 1 else L.Linear),
        ):
            np.random.seed(0)
            assert type(network.linear(4, 5, role, grid)) is kind


CHAINERS: dict[str, tuple[str, Any]] = {
    'max pooling': (
        'type: pooling, kernel: 3, stride: 2', lambda x: F.max_pooling_2d(x, 3, 2, cover_all=False),
    ),
    'average pooling': (
        'type: pooling, kind: average, kernel: 2', lambda x: F.average_pooling_2d(x, 2, 2),
    ),
    'activation': ('type: activation, function: softplus', F.softplus),
    'logistic': ('type: activation, function: logistic', F.sigmoid),
}  # fmt: skip


@alone
@pytest.mark.parametrize('name', CHAINERS)
def test_layers_without_weights(name: str) -> None:
    layers, expected = CHAINERS[name]
    made = of_one_process(f'{layers}; type: dense, units: 10')
    np.testing.assert_array_equal(made(X).array, made.dense1(expected(X)).array)


@alone
@pytest.mark.parametrize('cell', ['tanh', 'lstm', 'gru'])
def test_cells_step_by_step(cell: str) -> None:
    """Written out in NumPy, on the rows of the pictures."""
    layer = of_one_process(f'type: recurrent, units: 3, cell: {cell}; type: dense, units: 10')
    W, b = layer.recurrent1.upward.W.array, layer.recurrent1.upward.b
    V, b = layer.recurrent1.lateral.W.array, b.array
    b += np.arange(b.size) / 7
    h, c = np.zeros((B, 3)), np.zeros((B, 3))
    for t in range(8):
        u, v = X[:, 0, t] @ W.T + b, h @ V.T
        h, c = CELLS[cell](u, v, h, c)
    np.testing.assert_allclose(layer.recurrent1(chainer.Variable(X)).array, h, rtol=1e-10)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(u: Any, v: Any, h: Any, c: Any) -> Any:
    a, i, f, o = np.moveaxis((u + v).reshape(B, 3, 4), 2, 0)  # Chainer's layout
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(a)
    return sigmoid(o) * np.tanh(c), c


def gru(u: Any, v: Any, h: Any, c: Any) -> Any:
    (ur, uz, un), (vr, vz, vn) = np.split(u, 3, 1), np.split(v, 3, 1)
    z = sigmoid(uz + vz)
    return (1 - z) * np.tanh(un + sigmoid(ur + vr) * vn) + z * h, c


CELLS: dict[str, Any] = {'tanh': lambda u, v, h, c: (np.tanh(u + v), c), 'lstm': lstm, 'gru': gru}


@alone
@pytest.mark.parametrize(
    ('shape', 'expected'), [((2, 5, 3), (2, 5, 3)), ((2, 3, 4, 5), (2, 4, 15))]
)
def test_pictures_as_sequences_of_rows(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype='f8').reshape(shape)
    y = network.as_sequence(chainer.Variable(x)).array
    assert y.shape == expected
    row = x[1, 2] if x.ndim == 3 else x[1, :, 2].reshape(-1)
    np.testing.assert_array_equal(y[1, 2], row)


@alone
def test_initialisers() -> None:
    def values(entry: Any) -> np.ndarray:
        x = np.empty((200, 50))
        np.random.seed(1)
        network.initialiser(entry)(x)
        return x

    assert network.initialiser(None) is None
    assert (values(schema.Constant(type='constant', value=3)) == 3).all()
    x = values(schema.Uniform(type='uniform', low=-1, high=3))
    assert (x.min(), x.max()) == pytest.approx((-1, 3), abs=0.01)
    x = values(schema.Gaussian(type='gaussian', mean=2, std=0.5))
    assert (x.mean(), x.std()) == pytest.approx((2, 0.5), abs=0.03)
    x = values(schema.ByFan(type='he_normal', scale=2))
    assert x.std() == pytest.approx(2 * (2 / 50) ** 0.5, rel=0.03)


@alone
@pytest.mark.parametrize(
    ('n', 'wanted', 'expected'),
    [
        (64, None, (1, 8, 8)),
        (63, None, (63,)),
        (1, None, (1, 1, 1)),
        (64, [4, 16], (4, 16)),
        (64, [4, 15], None),
    ],
)
def test_shapes_of_samples(n: int, wanted: list[int] | None, expected: Any) -> None:
    assert network.sample_shape(n, wanted) == expected
