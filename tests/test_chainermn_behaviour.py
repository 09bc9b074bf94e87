"""What ChainerMN's reference says in passing, and no other test here says.

The parts of mnx have their own tests; these are the corners that an old script may lean on.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import optimizers
from chainer.iterators import SerialIterator
from chainer.serializers import DictionarySerializer, NpzDeserializer

import mnx
from mnx import functions as MF
from mnx import testing
from mnx.communicators import Communicator
from mnx.transports.devices import visible


def model_of(comm: Communicator, *sizes: int | None) -> chainer.Sequential:
    """Return linear layers in float64 which differ between the ranks."""
    np.random.seed(comm.rank)
    with chainer.using_config('dtype', np.dtype('f8')):
        return chainer.Sequential(*map(L.Linear, sizes[:-1], sizes[1:]))


def samples(comm: Communicator) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole batch, four for each rank, and this rank's part of it."""
    whole = np.random.default_rng(0).normal(size=(4 * comm.size, 3))
    return whole, whole[4 * comm.rank : 4 * comm.rank + 4]


def loss_of(model: Any) -> Any:
    return lambda x: F.mean(F.tanh(model(x)) ** 2)


@pytest.mark.parametrize('name', ['pure_nccl', 'non_cuda_aware'])
def test_what_needs_nccl_is_a_runtime_error_without(name: str):
    if not visible().problem:
        pytest.skip('here are GPUs')
    with pytest.raises(RuntimeError, match='NCCL'):
        mnx.create_communicator(name)


@pytest.mark.parametrize('call', ['bcast', 'gather', 'allgather', 'allreduce'])
def test_a_tuple_is_for_messages_and_rows_only(comm: Communicator, call: str):
    with pytest.raises(TypeError, match='tuple'):
        getattr(comm, call)((np.ones(2), np.ones(2)))


def test_the_root_of_bcast_keeps_its_own_array(comm: Communicator):
    root = comm.size - 1
    x = np.arange(3) if comm.rank == root else None
    y = comm.bcast(x, root=root)
    assert (y is x) == (comm.rank == root)
    np.testing.assert_array_equal(y, np.arange(3))


def test_messages_over_parts_of_the_ranks(any_comm: Communicator):
    part = any_comm.split(any_comm.rank // 2, any_comm.rank)
    assert part is not None
    x = np.arange(3) + any_comm.rank
    before, after = (part.rank - 1) % part.size, (part.rank + 1) % part.size
    for tag in (0, 32766):  # MPI promises 32767, of which mnx keeps one
        if part.rank == 0:
            part.send(x, after, tag)
            part.send_obj(x, after, tag)
        found, again = part.recv(before, tag), part.recv_obj(before, tag=tag)
        np.testing.assert_array_equal(found, again)
        if part.rank > 0:
            part.send(x, after, tag)
            part.send_obj(x, after, tag)
        expected = any_comm.rank + (1 if part.rank == 0 and part.size == 2 else -part.rank)
        np.testing.assert_array_equal(found, np.arange(3) + expected)


def test_without_zero_fill_uninitialised_parameters_and_missing_gradients_stay(comm: Communicator):
    model = chainer.Sequential(L.Linear(2, 2), L.Linear(None, 2))
    model.cleargrads()
    comm.multi_node_mean_grad(model)
    assert [p.grad for p in model.params()] == [None] * 4


def test_gradients_that_nobody_has_computed_diverge_in_debug_mode(comm: Communicator):
    with chainer.using_config('debug', True), pytest.raises(ValueError, match=' diverged '):
        comm.multi_node_mean_grad(L.Linear(3, 2))  # Chainer makes them NaN


def test_no_update_is_spent_on_a_broadcast(comm: Communicator):
    model = model_of(comm, 3, 2)
    optimizer = mnx.create_multi_node_optimizer(optimizers.SGD(0.1), comm).setup(model)
    before = model[0].W.array.copy()
    optimizer.update(loss_of(model), samples(comm)[1])
    assert optimizer.t == 1
    assert abs(model[0].W.array - before).max() > 1e-4


def test_setup_again_after_a_layer_was_added(comm: Communicator):
    """Its values are rank 0's; no update is lost; the rest goes on as it was."""

    def train(optimizer: Any, model: Any, x: np.ndarray) -> chainer.Sequential:
        optimizer.setup(model)
        optimizer.update(loss_of(model), x)
        model.append(model_of(comm, 2, 2)[0])
        optimizer.setup(model)
        optimizer.update(loss_of(model), x)
        assert optimizer.t == 1  # setup begins anew, as Chainer's does
        return model

    whole, mine = samples(comm)
    found = train(
        mnx.create_multi_node_optimizer(optimizers.SGD(0.1), comm), model_of(comm, 3, 2), mine
    )
    testing.assert_replicated(comm, found)
    if comm.rank == 0:
        expected = train(optimizers.SGD(0.1), model_of(comm, 3, 2), whole)
        for p, q in zip(found.params(), expected.params(), strict=True):
            np.testing.assert_allclose(p.array, q.array, rtol=0, atol=1e-14)


def test_gradients_from_zeros_where_the_optimizer_wants_them(comm: Communicator):
    whole, mine = samples(comm)
    model = model_of(comm, 3, 2)
    optimizer = mnx.create_multi_node_optimizer(optimizers.SGD(0.1), comm).setup(model)
    expected = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        optimizer.use_cleargrads(False)
        optimizer.update(loss_of(model), mine)
    optimizers.SGD(0.1).setup(expected).update(loss_of(expected), whole)
    np.testing.assert_allclose(model[0].W.array, expected[0].W.array, rtol=0, atol=1e-14)


def test_the_wrapper_is_the_optimizer_for_all_who_ask(comm: Communicator):
    optimizer = mnx.create_multi_node_optimizer(optimizers.MomentumSGD(0.1, 0.8), comm)
    model = model_of(comm, 3, 2)
    assert optimizer.setup(model) is optimizer
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.1))
    optimizer.momentum, optimizer.lr = 0.5, 0.2
    actual = optimizer.actual_optimizer
    assert (actual.hyperparam.momentum, actual.hyperparam.lr) == (0.5, 0.2)
    assert (optimizer.target, optimizer.t, optimizer.epoch) == (model, 0, 0)
    optimizer.new_epoch()
    assert actual.epoch == 1
    actual.remove_hook('WeightDecay')  # a KeyError if it were not there


def test_nothing_warns_of_experiments(comm: Communicator):
    with warnings.catch_warnings():
        warnings.simplefilter('error', FutureWarning)
        F.sum(MF.allgather(comm, np.ones(2))[0]).backward()
        comm.alltoall(np.ones((comm.size, 1)))
        mnx.MultiNodeChainList(comm)
        mnx.links.MultiNodeBatchNormalization(2, comm)(np.ones((2, 2), 'f'))


def test_an_iterator_of_one_rank_goes_on_where_that_of_all_was_saved(comm: Communicator):
    data = list(range(10))
    shared = SerialIterator(data, 3) if comm.rank == 0 else None
    iterator = mnx.iterators.create_multi_node_iterator(shared, comm)
    iterator.next()
    saved = DictionarySerializer()
    iterator.serialize(saved)
    alone = SerialIterator(data, 3)
    alone.serialize(NpzDeserializer(saved.target))
    assert (alone.epoch, alone.current_position) == (0, 3)
    assert [alone.next() for _ in range(2)] == [iterator.next() for _ in range(2)]


@pytest.mark.needs_ranks(2)
def test_models_over_pairs_of_ranks_that_average_with_their_equals(comm: Communicator):
    """Dual parallel: one communicator across the model, one across the data."""
    n_pairs = comm.size // 2
    has_one = comm.rank < 2 * n_pairs  # of three ranks the last one just looks on
    pair = comm.split(comm.rank // 2 if has_one else None, comm.rank)
    peers = comm.split(comm.rank % 2 if has_one else None, comm.rank)
    whole = np.random.default_rng(0).normal(size=(4 * n_pairs, 3))
    if pair is None or peers is None:
        return
    layer = model_of(pair, 3, 3)  # on rank 0 and 1 of a pair, in all pairs
    model = mnx.MultiNodeChainList(pair)
    if pair.rank == 0:
        model.add_link(layer, rank_out=1)
    else:
        model.add_link(layer, rank_in=0)
    optimizer = mnx.create_multi_node_optimizer(optimizers.SGD(0.1), peers).setup(model)
    x = testing.part_of(peers, (whole,))[0]
    for _ in range(3):
        if pair.rank == 0:
            optimizer.update(lambda: F.sum(model(x)))  # the delegate variable
        else:
            optimizer.update(lambda: F.mean(F.tanh(model()) ** 2))
    with chainer.using_config('dtype', np.dtype('f8')):
        np.random.seed(0)
        expected = chainer.Sequential(L.Linear(3, 3))
        np.random.seed(1)
        expected.append(L.Linear(3, 3))
    plain = optimizers.SGD(0.1).setup(expected)
    for _ in range(3):
        plain.update(loss_of(expected), whole)
    np.testing.assert_allclose(layer[0].W.array, expected[pair.rank].W.array, rtol=0, atol=1e-13)
