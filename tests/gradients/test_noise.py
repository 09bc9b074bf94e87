"""Hooks that draw random numbers: the same ones on all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer.optimizer_hooks import GradientNoise

import mnx
from mnx.communicators import Communicator
from mnx.links import ParallelLinear
from mnx.testing import assert_replicated


@pytest.fixture(autouse=True)
def own_random_numbers(comm: Communicator) -> Iterator[None]:
    """Other numbers on each rank, as where Chainer's iterators shuffle."""
    before = np.random.get_state()
    np.random.seed(comm.rank)
    yield
    np.random.set_state(before)


class Net(chainer.Chain):
    """Children with names, which a Chain keeps in a set."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.RandomState(3)
        with self.init_scope():
            for name in ('first', 'second', 'third', 'fourth'):
                setattr(self, name, L.Linear(3, 3, initialW=rng.rand(3, 3)))

    def forward(self, x: np.ndarray) -> chainer.Variable:
        return F.mean(self.fourth(F.tanh(self.third(self.second(self.first(x))))) ** 2)


def data(n: int) -> np.ndarray:
    return np.random.RandomState(8).standard_normal((n, 3)).astype('f4')


def test_gradient_noise_is_the_same_on_all_ranks(comm: Communicator) -> None:
    net = Net()
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm, check_every=1)
    optimizer.setup(net).add_hook(GradientNoise(0.3))
    for _ in range(3):
        optimizer.update(net, data(4)[: comm.rank + 1])
    assert_replicated(comm, net)


@pytest.mark.parametrize('also_all', [False, True])
def test_noise_of_single_parameters(comm: Communicator, also_all: bool) -> None:
    net = Net()
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm, check_every=1)
    optimizer.setup(net)
    if also_all:
        optimizer.add_hook(GradientNoise(0.3))
    net.first.b.update_rule.add_hook(GradientNoise(0.3))
    net.third.W.update_rule.add_hook(GradientNoise(0.3))
    for _ in range(3):
        optimizer.update(net, data(4)[: comm.rank + 1])
    assert_replicated(comm, net)
    drawn = comm.allgather_obj(np.random.rand())
    assert len(set(drawn)) == comm.size  # each goes on with its own


def test_as_one_process_with_rank_0s_seeds(comm: Communicator) -> None:
    x = data(2 * comm.size)
    net, serial = Net(), Net()
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm).setup(net)
    plain = chainer.optimizers.SGD(0.1).setup(serial)
    for each in (optimizer, plain):
        each.add_hook(GradientNoise(0.3))
    expected = np.random.RandomState(0)  # rank 0's generator
    for _ in range(3):
        optimizer.update(net, x[2 * comm.rank : 2 * comm.rank + 2])
    own = np.random.get_state()
    if comm.size == 1:
        np.random.seed(0)
    for _ in range(3):
        if comm.size > 1:
            np.random.seed(expected.randint(2**32, dtype=np.uint32))
        plain.update(serial, x)
    np.random.set_state(own)
    for p, q in zip(net.params(), serial.params(), strict=True):
        np.testing.assert_allclose(p.array, q.array, rtol=1e-5, atol=1e-6)


def test_each_rank_goes_on_with_its_own_numbers(comm: Communicator) -> None:
    net = Net()
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm).setup(net)
    optimizer.add_hook(GradientNoise(0.3))
    np.random.seed(comm.rank)
    optimizer.update(net, data(4))
    drawn = comm.allgather_obj(np.random.rand())
    assert len(set(drawn)) == comm.size
    for rank, number in enumerate(drawn[1:], 1):
        assert number == np.random.RandomState(rank).rand()


def test_without_noise_no_number_is_drawn(comm: Communicator) -> None:
    net = Net()
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm).setup(net)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.1))
    np.random.seed(comm.rank)
    optimizer.update(net, data(4))
    assert np.random.rand() == np.random.RandomState(comm.rank).rand()


def test_a_plain_optimizer_of_an_injected_model(comm: Communicator) -> None:
    net = Net()
    injection = mnx.inject_allreduce(net, comm)
    optimizer = chainer.optimizers.SGD(0.1).setup(net)
    optimizer.add_hook(GradientNoise(0.3))
    for _ in range(3):
        optimizer.update(net, data(4))
    assert_replicated(comm, net)
    drawn = comm.allgather_obj(np.random.rand())
    assert len(set(drawn)) == comm.size  # each goes on with its own
    noises = [p.grad for p in net.params()]
    assert len({tuple(noise.ravel()) for noise in noises}) == len(noises)
    injection.remove()


def test_parts_of_an_injected_model(comm: Communicator) -> None:
    """Copies of a model in parts: the noise of a part is the same in all copies."""
    alone = comm.split(comm.rank, 0)
    assert alone is not None
    net = ParallelLinear(3, 2, alone, initialW=np.ones((2, 3)))
    mnx.inject_allreduce(net, comm)
    optimizer = chainer.optimizers.SGD(0.1).setup(net)
    optimizer.add_hook(GradientNoise(0.3))
    optimizer.update(lambda: F.mean(net(data(4)) ** 2))
    assert_replicated(comm, net)
    alone.finalize()
