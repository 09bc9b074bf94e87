"""Plain Chainer models, split over the ranks: same values, same training."""

from __future__ import annotations

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer.link_hooks import TimerHook

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError
from mnx.links import ParallelConvolution2D, ParallelLinear, parallelize
from tests.links.counting import counting
from tests.links.training import assert_equal_wholes, batches, seeded, split_params, train, wholes


class Net(chainer.Chain):
    """All kinds of containers, functions in between, and layers that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.conv = chainer.Sequential(
                L.Convolution2D(2, 4, 3, pad=1),
                F.relu,
                L.Convolution2D(4, 6, 3),
                L.Convolution2D(6, 4, 1, groups=2),
            )
            self.norm = L.BatchNormalization(4)
            self.body = chainer.ChainList(
                chainer.Sequential(L.Linear(None, 9), F.tanh, F.sigmoid, L.Linear(9, 8)),
                L.Linear(8, 7, nobias=True),
            )
            self.head = L.Linear(7, 3)

    def forward(self, x):
        h = F.dropout(F.max_pooling_2d(self.norm(F.tanh(self.conv(x))), 2), 0.2)
        return self.head(F.dropout(F.relu(self.body[1](self.body[0](h)))))


SHAPE = (2, 6, 6)


def test_140_steps_with_dropout_and_normalization(comm: Communicator) -> None:
    data = batches(140, SHAPE, 3, 6)
    with chainer.using_config('dtype', np.float64):
        expected = seeded(Net)
        np.random.seed(1)
        losses = train(expected, data)
        found = seeded(Net)
        np.random.seed(1)
        assert parallelize(found, comm) is found
        found_losses = train(found, data)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-9)
    assert_equal_wholes(found, expected, 1e-9)


def test_what_is_split_and_how(comm: Communicator) -> None:
    model = parallelize(seeded(Net), comm)
    first, second, grouped = model.conv[0], model.conv[2], model.conv[3]
    assert roles(first, second) == [('output', False, False), ('input', True, True)]
    assert type(first) is type(second) is ParallelConvolution2D
    assert type(grouped) is L.Convolution2D
    assert roles(model.body[0][0], model.body[0][3]) == [
        ('output', False, False),
        ('input', True, True),
    ]
    assert roles(model.body[1], model.head) == [('output', True, False)] * 2
    assert type(model.norm) is L.BatchNormalization
    assert [n for n, _ in model.namedparams()] == [n for n, _ in Net().namedparams()]


def roles(*links):
    return [(link.partition, link.gather_output, link.input_is_split) for link in links]


def test_ranks_that_begin_with_different_values_take_those_of_rank_0(
    comm: Communicator,
) -> None:
    model, expected = seeded(Net, comm.rank), seeded(Net)
    model.norm.avg_mean[...] = comm.rank
    np.random.seed(0)
    parallelize(model, comm)
    found, expected = wholes(model), wholes(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_layer_alone(comm: Communicator) -> None:
    layer = seeded(lambda: L.Linear(3, 5))
    assert type(parallelize(layer, comm)) is ParallelLinear
    assert_equal_wholes(parallelize(layer, comm), layer, 0)


def test_a_layer_in_two_places_stays_one(comm: Communicator) -> None:
    layer = L.Linear(4, 4)
    model = parallelize(chainer.Sequential(layer, F.relu, layer), comm)
    assert model[0] is model[2]
    assert roles(model[0]) == [('output', True, False)]


def test_what_is_left_alone(comm: Communicator) -> None:
    class Own(L.Linear):
        pass

    tied, other = L.Linear(4, 4), L.Linear(4, 4)
    other.W = tied.W
    hooked = L.Linear(4, 4)
    hooked.add_hook(TimerHook())
    model = chainer.ChainList(Own(4, 4), tied, other, hooked)
    assert list(split_params(parallelize(model, comm))) == []


def test_a_sequential_with_a_forward_of_its_own_has_no_pairs(comm: Communicator) -> None:
    """There the softmax sees the whole."""

    class Own(chainer.Sequential):
        def forward(self, x):
            return self[1](F.softmax(self[0](x)))

    def make():
        return Own(L.Linear(5, 7), L.Linear(7, 3))

    expected, found = seeded(make), seeded(make)
    assert roles(*parallelize(found, comm)) == [('output', True, False)] * 2
    x = np.random.default_rng(0).standard_normal((4, 5))
    np.testing.assert_allclose(found(x).array, expected(x).array, rtol=1e-12)


@pytest.mark.parametrize('n_in', [5, None])
def test_an_lstm(comm: Communicator, n_in: int | None) -> None:
    """Which draws its weights at the first call, a quarter at a time, if `n_in` is not known."""
    x = np.random.default_rng(0).standard_normal((4, 5))
    with chainer.using_config('dtype', np.float64):
        expected = seeded(lambda: L.LSTM(n_in, 3))
        expected_y = [expected(x).array, expected(x).array]
        found = seeded(lambda: parallelize(L.LSTM(n_in, 3), comm))
        found_y = [found(x).array, found(x).array]
    assert len(list(split_params(found))) == (3 if n_in else 0)
    np.testing.assert_allclose(found_y, expected_y, rtol=1e-12, atol=1e-15)


def test_too_few_channels_stay_whole(comm: Communicator) -> None:
    model = parallelize(chainer.Sequential(L.Convolution2D(1, 1, 3), F.relu), comm)
    assert type(model[0]) is (ParallelConvolution2D if comm.size == 1 else L.Convolution2D)


def test_traffic_of_a_pair(comm: Communicator) -> None:
    counted, log = counting(comm)
    model = chainer.Sequential(L.Linear(5, 8), F.relu, L.Linear(8, 2))
    model = seeded(lambda: parallelize(model, counted))
    log.clear()
    train(model, [(np.ones((3, 5), 'f'), np.zeros(3, 'i'))])
    assert log == [('all_reduce', 2 * 3 * 4)]
    counted.finalize()


def test_after_setup_it_is_too_late(comm: Communicator) -> None:
    model = L.Classifier(L.Linear(3, 4))
    chainer.optimizers.SGD().setup(model)
    with pytest.raises(ArgumentError, match=r'before optimizer\.setup'):
        parallelize(model, comm)


def test_a_second_time_is_too_late(comm: Communicator) -> None:
    model = parallelize(chainer.Sequential(L.Linear(4, 4), L.Linear(4, 4)), comm)
    with pytest.raises(ArgumentError, match='parallel links already'):
        parallelize(model, comm)


@pytest.mark.needs_ranks(2)
def test_not_with_data_parallelism_over_the_same_ranks(comm: Communicator) -> None:
    model = parallelize(chainer.Sequential(L.Linear(4, 4 * comm.size)), comm)
    with pytest.raises(MismatchError, match='part 0 of'):
        mnx.create_multi_node_optimizer(chainer.optimizers.SGD(), comm).setup(model)


@pytest.mark.needs_ranks(4)
def test_beside_data_parallelism(comm: Communicator) -> None:
    """Rows of two ranks share a model, columns share the batch: as one process."""
    row, column = divmod(comm.rank, 2)
    one_model = comm.split(row, comm.rank) if comm.rank < 4 else comm.split(None, 0)
    one_part = comm.split(column, comm.rank) if comm.rank < 4 else comm.split(None, 0)
    if one_model is None:
        return
    assert one_part is not None

    def make():
        return chainer.Sequential(L.Linear(5, 7), F.tanh, L.Linear(7, 3))

    data = batches(20, (5,), 3, 10)
    expected, found = seeded(make), seeded(make)
    train(expected, data)
    parallelize(found, one_model)
    halves = [(x[row::2], t[row::2]) for x, t in data]
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.MomentumSGD(0.05), one_part)
    optimizer.setup(found)
    for x, t in halves:
        optimizer.update(lambda x, t: F.softmax_cross_entropy(found(x), t), x, t)
    assert_equal_wholes(found, expected, 1e-9)


def test_a_link_that_is_held_elsewhere_stays_whole_and_trains(comm: Communicator) -> None:
    """What a forward pass reaches by a list of its own is what the optimizer updates."""

    class Layers(chainer.Chain):
        def __init__(self) -> None:
            super().__init__()
            with self.init_scope():
                self.l1, self.l2, self.l3 = L.Linear(3, 4), L.Linear(4, 4), L.Linear(4, 2)
            self.hidden = {'layers': [self.l1, self.l2]}

        def forward(self, x: np.ndarray) -> chainer.Variable:
            for layer in self.hidden['layers']:
                x = F.tanh(layer(x))
            return self.l3(x)

    model = mnx.parallelize(Layers(), comm)
    assert [type(model[name]) is L.Linear for name in ('l1', 'l2', 'l3')] == [True, True, False]
    before = model.l1.W.array.copy()
    optimizer = chainer.optimizers.SGD(0.5).setup(model)
    optimizer.update(lambda: F.mean(model(np.ones((2, 3), 'f4')) ** 2))
    assert (model.l1.W.array != before).any()
