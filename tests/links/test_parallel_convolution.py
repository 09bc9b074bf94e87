"""A convolution over many ranks, beside the same one in one process."""

from __future__ import annotations

from collections.abc import Callable

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.links import ParallelConvolution2D
from tests.links.counting import counting
from tests.links.training import assert_equal_wholes, batches, seeded, train

CHANNELS, N_OUT = 5, 3
Make = Callable[[Communicator], chainer.Link]


def pool(x):
    return F.max_pooling_2d(F.relu(x), 2)


def serial() -> chainer.Link:
    return chainer.Sequential(
        L.Convolution2D(4, CHANNELS, 3, pad=1),
        pool,
        L.Convolution2D(CHANNELS, 6, (3, 2), stride=(2, 1), pad=(1, 0), dilate=(1, 2)),
        F.tanh,
        L.Linear(12, N_OUT),
    )


def parallel(first: dict, second: dict) -> Make:
    def make(comm: Communicator) -> chainer.Link:
        return chainer.Sequential(
            ParallelConvolution2D(4, CHANNELS, 3, comm, pad=1, **first),
            pool,
            ParallelConvolution2D(
                CHANNELS, 6, (3, 2), comm, stride=(2, 1), pad=(1, 0), dilate=(1, 2), **second
            ),
            F.tanh,
            L.Linear(12, N_OUT),
        )

    return make


MODELS: dict[str, Make] = {
    'output': parallel({}, {}),
    'input': parallel({'partition': 'input'}, {'partition': 'input'}),
    'pair': parallel({'gather_output': False}, {'partition': 'input', 'input_is_split': True}),
}


@pytest.mark.parametrize('name', MODELS)
def test_140_steps_are_those_of_one_process(comm: Communicator, name: str) -> None:
    data = batches(140, (4, 6, 6), N_OUT, 5)
    with chainer.using_config('dtype', np.float64):
        expected, found = seeded(serial), seeded(lambda: MODELS[name](comm))
        losses = train(expected, data)
        np.testing.assert_allclose(train(found, data), losses, rtol=1e-9)
    assert_equal_wholes(found, expected, 1e-9)


@pytest.mark.parametrize('partition', ['output', 'input'])
@pytest.mark.parametrize('nobias', [False, True])
def test_lazy(comm: Communicator, partition: str, nobias: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 5))
    with chainer.using_config('dtype', np.float64):
        expected = seeded(lambda: L.Convolution2D(None, 6, 3, nobias=nobias))
        expected_y = expected(x).array
        found = seeded(lambda: ParallelConvolution2D(None, 6, 3, comm, partition, nobias=nobias))
        np.testing.assert_allclose(found(x).array, expected_y, rtol=1e-12, atol=1e-14)
    assert_equal_wholes(found, expected, 0)
    assert found.in_channels == 4


def test_traffic_of_a_pair(comm: Communicator) -> None:
    counted, log = counting(comm)
    model = seeded(lambda: MODELS['pair'](counted))
    x = chainer.Variable(np.ones((2, 4, 6, 6)))
    y = model[2](model[1](model[0](x)))
    assert log == [('all_reduce', y.size * 8)]
    log.clear()
    F.sum(y).backward()
    assert log == [('all_reduce', x.size * 8)]
    counted.finalize()


@pytest.mark.needs_ranks(2)
class TestMisuse:
    def test_groups(self, comm: Communicator) -> None:
        with pytest.raises(ArgumentError, match=r'groups .* expected 1 but got 2'):
            ParallelConvolution2D(4, 4, 3, comm, groups=2)

    def test_too_few_channels(self, comm: Communicator) -> None:
        with pytest.raises(ArgumentError, match='fewer output channels than ranks'):
            ParallelConvolution2D(4, 1, 3, comm)
        with pytest.raises(ArgumentError, match='fewer input channels than ranks'):
            ParallelConvolution2D(1, 4, 3, comm, 'input')
