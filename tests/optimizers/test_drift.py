"""Ranks whose copies of the model differ are told, and those that differ rightly are not."""

from __future__ import annotations

from collections.abc import Callable

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError
from mnx.links import ParallelLinear
from mnx.optimizers import MultiNodeOptimizer
from mnx.optimizers.drift import checksum, differences, explain, is_due, period_of, sum_of_bits
from mnx.testing import assert_replicated

Setting = tuple[chainer.Chain, MultiNodeOptimizer]


class Net(chainer.Chain):
    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(4, 3)
            self.bn = L.BatchNormalization(3)
            self.l2 = L.Linear(3, 2)

    def forward(self, x: np.ndarray) -> chainer.Variable:
        return F.mean(self.l2(F.tanh(self.bn(self.l1(x)))) ** 2)


def setting(comm: Communicator, check_every: int | None = None) -> Setting:
    net = Net()
    actual = chainer.optimizers.MomentumSGD(0.1)
    optimizer = mnx.create_multi_node_optimizer(actual, comm, check_every=check_every)
    return net, optimizer.setup(net)


def train(net: chainer.Chain, optimizer: MultiNodeOptimizer, n_updates: int, rank: int) -> None:
    rng = np.random.RandomState(rank)
    for _ in range(n_updates):
        optimizer.update(net, rng.standard_normal((5, 4)).astype('f4'))


def another_rate(net: chainer.Chain, rank: int) -> None:
    net.l2.W.update_rule.hyperparam.lr = 0.2


def edited_weights(net: chainer.Chain, rank: int) -> None:
    net.l2.W.array[0, 0] += 1e-3


def no_update(net: chainer.Chain, rank: int) -> None:
    net.l2.W.update_rule.enabled = False


CAUSES: dict[str, Callable[[chainer.Chain, int], None]] = {
    f.__name__: f for f in (another_rate, edited_weights, no_update)
}


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('cause', CAUSES)
def test_what_drifts_on_one_rank_is_an_error_on_all(comm: Communicator, cause: str) -> None:
    net, optimizer = setting(comm)
    train(net, optimizer, 2, comm.rank)
    if comm.rank == 1:
        CAUSES[cause](net, comm.rank)
    train(net, optimizer, 1, comm.rank)  # not due
    with pytest.raises(MismatchError, match='have drifted apart') as raised:
        train(net, optimizer, 1, comm.rank)
    assert '  /l2/W on rank(s) 1\n' in str(raised.value)
    assert len(set(comm.allgather_obj(str(raised.value)))) == 1
    comm.bcast_data(net)  # as the text advises
    train(net, optimizer, 1, comm.rank)


def noise(rule: object, param: chainer.Parameter) -> None:
    """A hook of a user's own: mnx knows Chainer's only."""
    param.grad += np.random.normal(size=param.shape).astype(param.dtype)


noise.name = 'noise'


@pytest.mark.needs_ranks(2)
def test_noise_of_one_parameter_is_found_after_the_first_update(comm: Communicator) -> None:
    net, optimizer = setting(comm)
    net.l1.b.update_rule.add_hook(noise)
    np.random.seed(comm.rank)
    odd = '1' if comm.size == 2 else f'1-{comm.size - 1}'
    with pytest.raises(MismatchError, match=rf'/l1/b on rank\(s\) {odd}\n.*random numbers'):
        train(net, optimizer, 1, comm.rank)


def test_running_statistics_may_differ(comm: Communicator) -> None:
    net, optimizer = setting(comm, check_every=1)
    train(net, optimizer, 3, comm.rank)
    means = comm.allgather_obj(net.bn.avg_mean.tobytes())
    assert len(set(means)) == comm.size
    assert_replicated(comm, net)


@pytest.mark.needs_ranks(4)
def test_each_rank_of_a_pair_has_its_part_of_a_weight(comm: Communicator) -> None:
    """Split in a pair of ranks, copied over the pairs: the copies are compared, not the parts."""
    pair, copies = comm.split(comm.rank // 2, comm.rank), comm.split(comm.rank % 2, comm.rank)
    assert pair is not None
    assert copies is not None
    np.random.seed(3)
    net = chainer.Sequential(ParallelLinear(4, 6, comm=pair), L.Linear(6, 2))
    actual = chainer.optimizers.Adam()
    optimizer = mnx.create_multi_node_optimizer(actual, copies, check_every=1).setup(net)
    x = np.random.RandomState(comm.rank // 2).standard_normal((5, 4)).astype('f4')
    for _ in range(3):
        optimizer.update(lambda: F.mean(net(x) ** 2))
    if copies.size > 1:  # not so for a rank that the pairs leave over
        net[0].W.array[...] += copies.rank
        with pytest.raises(MismatchError, match='/0/W on'):
            optimizer.update(lambda: F.mean(net(x) ** 2))


@pytest.mark.needs_ranks(2)
def test_ranks_that_would_compare_at_different_times(comm: Communicator) -> None:
    net, optimizer = setting(comm, check_every=10 + comm.rank)
    with pytest.raises(MismatchError, match='check_every=11'):
        train(net, optimizer, 1, comm.rank)


@pytest.mark.parametrize('how', ['MNX_CHECK=0', 'MNX_CHECK_EVERY=0', 'check_every=0'])
def test_it_can_be_turned_off(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    name, value = how.split('=')
    monkeypatch.setenv(name, value)
    with mnx.create_communicator('naive', comm.mpi_comm) as own:
        net, optimizer = setting(own, check_every=0 if name == 'check_every' else None)
        if own.rank == 1:
            another_rate(net, own.rank)
        train(net, optimizer, 2, own.rank)


@pytest.mark.needs_ranks(2)
def test_dummy_lets_the_copies_drift(comm: Communicator) -> None:
    with mnx.create_communicator('dummy') as dummy:
        net, optimizer = setting(dummy, check_every=1)
        train(net, optimizer, 2, comm.rank)
    with pytest.raises(AssertionError):
        assert_replicated(comm, net)


@pytest.mark.needs_ranks(2)
def test_another_model_is_compared_often_again(comm: Communicator) -> None:
    net, optimizer = setting(comm)
    train(net, optimizer, 2, comm.rank)
    other = Net()
    optimizer.setup(other)
    if comm.rank == 1:
        another_rate(other, comm.rank)
    with pytest.raises(MismatchError, match='have drifted apart'):
        train(other, optimizer, 1, comm.rank)


def test_a_wrong_period_on_one_rank_is_an_error_on_all(comm: Communicator) -> None:
    with pytest.raises(ArgumentError, match='MNX_CHECK_EVERY'):
        setting(comm, check_every=-1 if comm.rank == comm.size - 1 else 5)


def test_period_of() -> None:
    assert period_of(None, {}) == period_of(None, {'MNX_CHECK_EVERY': ''}) == 1000
    assert period_of(None, {'MNX_CHECK_EVERY': '7'}) == 7
    assert period_of(3, {'MNX_CHECK_EVERY': '7'}) == 3
    assert period_of(0, {'MNX_CHECK_EVERY': '7'}) == 0
    for text in ('-1', 'often', '1.5'):
        with pytest.raises(ArgumentError, match=text):
            period_of(None, {'MNX_CHECK_EVERY': text})
    with pytest.raises(ArgumentError, match=r'2\.5'):
        period_of(2.5, {})  # type: ignore[arg-type]


def test_most_updates_compare_nothing() -> None:
    due = [n for n in range(1, 10_001) if is_due(n, 1000)]
    assert len(due) == 10 + 10
    assert [n for n in range(1, 8) if is_due(n, 1)] == [1, 2, 3, 4, 5, 6, 7]
    assert [n for n in range(1, 8) if is_due(n, 3)] == [1, 2, 3, 6]


def test_of_two_halves_rank_0s_is_right() -> None:
    assert differences([{'/W': 1}, {'/W': 2}]) == {'/W': [1]}
    assert differences([{'/W': 1}, {'/W': 2}, {'/W': 2}]) == {'/W': [0]}
    assert differences([{'/W': 1, '/b': 1}, {'/W': 1}]) == {'/b': [1]}


def test_of_many_parameters_some_are_named() -> None:
    text = explain([{f'/{i}/W': rank for i in range(20)} for rank in range(2)])
    assert '20 of 20 parameters' in text
    assert '/0/W' in text
    assert '  and 12 more\n' in text


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', 'i8'])
@pytest.mark.parametrize('function', [checksum, sum_of_bits])
def test_one_bit_shows(dtype: str, function: Callable[[np.ndarray], int]) -> None:
    x = np.random.RandomState(0).standard_normal((3, 5, 7)).astype(dtype)
    other = x.copy()
    other.reshape(-1).view('u1')[13] ^= 1
    assert function(x) == function(np.asfortranarray(x)) == function(x.copy())
    assert function(x) != function(other)
    assert function(x[:0]) == 0
