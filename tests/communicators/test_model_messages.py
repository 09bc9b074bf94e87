"""Means of gradients and broadcasts of parameters, in every dtype and layout."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, DtypeError, MismatchError


def link_of(arrays: dict[str, np.ndarray]) -> chainer.Link:
    link = chainer.Link()
    with link.init_scope():
        for name, array in arrays.items():
            setattr(link, name, chainer.Parameter(array))
    return link


def gradients(rank: int, dtypes: list[str]) -> dict[str, np.ndarray]:
    """Large, small, empty and 0-d arrays."""
    rng = np.random.default_rng(rank)
    shapes = [(300, 400), (7,), (), (0, 3), (2, 3, 4), (65_537,)]
    return {
        f'p{i}': rng.integers(-50, 50, shape).astype(dtypes[i % len(dtypes)])
        for i, shape in enumerate(shapes)
    }


@pytest.mark.parametrize('dtypes', [['f4'], ['f8'], ['f2'], ['f4', 'f2', 'f8']], ids=str)
@pytest.mark.parametrize('order', ['C', 'F'])
def test_mean_of_gradients(training_comm: Communicator, dtypes: list[str], order: Any) -> None:
    comm = training_comm
    everyone = [gradients(r, dtypes) for r in range(comm.size)]
    model = link_of({name: np.zeros_like(g) for name, g in everyone[0].items()})
    given = {}
    for param in model.params():
        given[param.name] = np.array(everyone[comm.rank][param.name], order=order)
        param.grad = given[param.name]
    comm.multi_node_mean_grad(model)
    for param in model.params():
        stack = [e[param.name].astype('f8') for e in everyone]
        expected = (sum(stack) / comm.size).astype(param.dtype)
        np.testing.assert_allclose(param.grad, expected, rtol=1e-7, err_msg=param.name)
        assert param.grad is given[param.name]  # in place
        assert param.grad.dtype == param.dtype


@pytest.mark.needs_ranks(2)
def test_configurations_that_differ(new_comm: Communicator) -> None:
    """Else one rank would send numbers of 4 bytes, and another take them for some of 8."""
    new_comm.set_config('allreduce_grad_dtype', 'f4' if new_comm.rank == 1 else None)
    model = link_of({'p': np.zeros(5)})
    model.p.grad = np.ones(5)
    with pytest.raises(MismatchError, match=r'> rank 1 .*allreduce_grad_dtype=float32'):
        new_comm.multi_node_mean_grad(model)
    with pytest.raises(MismatchError, match='allreduce_grad_dtype=None'):
        new_comm.start_mean_grad(model)


def test_weighted_mean(training_comm: Communicator) -> None:
    comm = training_comm
    model = link_of({'p': np.zeros(5)})
    model.p.grad = np.arange(5.0) + comm.rank
    weights = np.arange(comm.size) * 2.0 + 1
    comm.multi_node_mean_grad(model, weight=weights[comm.rank])
    expected = np.average([np.arange(5.0) + r for r in range(comm.size)], axis=0, weights=weights)
    np.testing.assert_allclose(model.p.grad, expected, rtol=1e-15)


def test_no_link_on_one_rank(comm: Communicator) -> None:
    model = L.Linear(2, 3) if comm.rank < comm.size - 1 else [np.zeros(3)]
    for call in (comm.multi_node_mean_grad, comm.start_mean_grad):
        with pytest.raises(DtypeError, match=r'expected a chainer\.Link but got list'):
            call(model)


@pytest.mark.parametrize('weight', [-1.0, float('nan'), 0.0, float('inf')])
def test_bad_weights(comm: Communicator, weight: float) -> None:
    model = link_of({'p': np.zeros(5)})
    model.p.grad = np.ones(5)
    with pytest.raises(ArgumentError, match='weight'):
        comm.multi_node_mean_grad(model, weight=weight)
    comm.barrier()


@pytest.mark.parametrize('dtype', ['i4', 'bool'])
@pytest.mark.parametrize('weighted', [False, True])
def test_whole_numbers_have_no_mean(
    training_comm: Communicator, dtype: str, weighted: bool
) -> None:
    """One rank would stop at its share, and the others would be in the sum already."""
    comm = training_comm
    model = link_of({'p': np.zeros(3), 'table': np.zeros(3, dtype)})
    model.p.grad, model.table.grad = np.ones(3), np.ones(3, dtype)
    for mean in (comm.multi_node_mean_grad, comm.start_mean_grad):
        with pytest.raises(DtypeError, match='integers or bools for /table'):
            mean(model, weight=comm.rank + 1.0 if weighted else None)
    model.table.grad = None
    comm.multi_node_mean_grad(model, zero_fill=True)
    assert model.table.grad is None


@pytest.mark.parametrize('wire', ['float16', 'float32', 'float64'])
def test_allreduce_grad_dtype(comm: Communicator, wire: str) -> None:
    with mnx.create_communicator('flat', allreduce_grad_dtype=wire) as wired:
        model = link_of({'p': np.zeros(3), 'q': np.zeros(2, 'f4')})
        for param in model.params():
            param.grad = np.full(param.shape, 1 / 3 + comm.rank, param.dtype)
        wired.multi_node_mean_grad(model)
        exact = 1 / 3 + (comm.size - 1) / 2
        error = np.abs(model.p.grad - exact).max()
        assert model.p.grad.dtype == np.float64
        assert error <= {'float16': 1e-3, 'float32': 1e-6, 'float64': 1e-15}[wire]
        assert wire == 'float64' or error > 1e-12  # it really went through the shorter dtype


@pytest.mark.parametrize('value', ['int32', 'complex64'])
def test_allreduce_grad_dtype_must_be_floating(comm: Communicator, value: str) -> None:
    with pytest.raises(ArgumentError, match='floating'):
        mnx.create_communicator('flat', allreduce_grad_dtype=value)


def test_missing_gradients(training_comm: Communicator) -> None:
    comm = training_comm
    model = link_of({'a': np.zeros(2), 'b': np.zeros(3)})
    for param in model.params():
        param.cleargrad()
    model.a.grad = np.full(2, 6.0 + comm.rank)
    comm.multi_node_mean_grad(model)
    np.testing.assert_allclose(model.a.grad, 6 + (comm.size - 1) / 2)
    assert model.b.grad is None
    comm.multi_node_mean_grad(model, zero_fill=True)
    np.testing.assert_array_equal(model.b.grad, np.zeros(3))


@pytest.mark.needs_ranks(2)
def test_different_sets_of_gradients_name_the_parameter(any_comm: Communicator) -> None:
    comm = any_comm
    model = link_of({'a': np.zeros(2), 'b': np.zeros(3)})
    for param in model.params():
        param.cleargrad()
    model.a.grad = np.ones(2)
    if comm.rank == 1:
        model.b.grad = np.ones(3)
    with pytest.raises(MismatchError, match=r'only on rank\(s\) 1: /b float64\(3,\)'):
        comm.multi_node_mean_grad(model)


def test_uninitialised_parameters_are_left_out(comm: Communicator) -> None:
    model = chainer.Sequential(L.Linear(2, 2), L.Linear(None, 2))
    model[0].W.grad = np.full((2, 2), float(comm.rank), 'f4')
    model[0].b.grad = np.zeros(2, 'f4')
    comm.multi_node_mean_grad(model, zero_fill=True)
    np.testing.assert_array_equal(model[0].W.grad, (comm.size - 1) / 2)
    comm.bcast_data(model)
    assert model[1].W.array is None


@pytest.mark.parametrize('order', ['C', 'F'])
def test_bcast_data_is_exact_in_every_dtype(any_comm: Communicator, order: Any) -> None:
    comm = any_comm

    def values(rank: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(rank)
        shapes = {'f2': (3, 4), 'f4': (300, 400), 'f8': (0, 2), 'c8': (2, 2), 'i8': (5,)}
        return {
            f'p_{dtype}': np.asarray((rng.standard_normal(shape) * 9).astype(dtype), order=order)
            for dtype, shape in shapes.items()
        }

    model = link_of(values(comm.rank + 1))
    before = {param.name: param.array for param in model.params()}
    comm.bcast_data(model)
    for name, expected in values(1).items():
        assert getattr(model, name).array is before[name]  # in place
        np.testing.assert_array_equal(getattr(model, name).array, expected)


def test_buffers_are_kept_from_call_to_call(training_comm: Communicator) -> None:
    """Different models in turn, so that kept buffers and views would be taken for one another."""
    comm = training_comm
    models = [link_of({'a': np.zeros(n), 'b': np.zeros((2, n))}) for n in (3, 5, 3)]
    for turn in range(3):
        for i, model in enumerate(models):
            for param in model.params():
                param.grad = np.full(param.shape, 100.0 * turn + 10 * i + comm.rank)
            comm.multi_node_mean_grad(model)
            for param in model.params():
                expected = 100.0 * turn + 10 * i + (comm.size - 1) / 2
                np.testing.assert_array_equal(param.grad, np.full(param.shape, expected))


@pytest.mark.parametrize('change', ['replace link', 'replace parameter', 'add', 'shape', 'remove'])
def test_a_model_may_change_between_calls(comm: Communicator, change: str) -> None:
    """What is kept of a model's structure must not outlive it."""
    model = chainer.Chain(a=L.Linear(2, 2), b=L.Linear(2, 2))

    def exchange() -> None:
        for param in model.params():
            param.grad = np.full(param.shape, comm.rank, param.dtype)
        comm.multi_node_mean_grad(model)
        for param in model.params():
            np.testing.assert_array_equal(param.grad, (comm.size - 1) / 2)

    for turn in range(1, 30):  # often enough for an address to be used again
        exchange()
        if change == 'replace link':
            del model.a
            with model.init_scope():
                model.a = L.Linear(2, 2)
        elif change == 'replace parameter':
            model.a.W = chainer.Parameter(np.zeros((2, 2), 'f4'))
        elif change == 'shape':
            model.a.W.array = np.zeros((turn % 5, 3), 'f4')
        elif change == 'add':
            with model.b.init_scope():
                setattr(model.b, f'p{turn}', chainer.Parameter(np.zeros(turn, 'f4')))
        elif hasattr(model.a, 'b') and turn > 15:
            del model.a.b
    exchange()


def test_old_names(comm: Communicator) -> None:
    model = link_of({'p': np.full(2, 1.0 + comm.rank)})
    model.p.grad = np.full(2, 1.0 + comm.rank)
    with pytest.warns(DeprecationWarning, match='multi_node_mean_grad'):
        comm.allreduce_grad(model)
    np.testing.assert_array_equal(model.p.grad, (1 + comm.size) / 2)
    comm.broadcast_data(model)
    np.testing.assert_array_equal(model.p.array, 1)


def test_gradients_in_one_place_in_memory(training_comm: Communicator) -> None:
    """One number that stands for many, an array under two names, and its transpose."""
    comm = training_comm
    model = link_of({name: np.zeros((200, 200)) for name in 'abcde'})
    shared = np.arange(40_000.0).reshape(200, 200) * (comm.rank + 1)
    model.a.grad = np.broadcast_to(np.float64(comm.rank), (200, 200))
    model.b.grad = model.c.grad = shared
    model.d.grad = shared.T
    model.e.grad = np.ones((200, 200)) + comm.rank
    for _ in range(2):  # the second time they are equal already
        comm.multi_node_mean_grad(model)
        expected = np.arange(40_000.0).reshape(200, 200) * (comm.size + 1) / 2
        np.testing.assert_array_equal(model.a.grad, np.full((200, 200), (comm.size - 1) / 2))
        np.testing.assert_allclose(model.b.grad, expected, rtol=1e-14)
        np.testing.assert_allclose(model.c.grad, expected, rtol=1e-14)
        np.testing.assert_allclose(model.d.grad, expected.T, rtol=1e-14)
        np.testing.assert_array_equal(model.e.grad, np.full((200, 200), (comm.size + 1) / 2))


def test_one_array_for_two_gradients_on_one_rank_only(training_comm: Communicator) -> None:
    comm = training_comm
    model = link_of({'a': np.zeros(3), 'b': np.zeros(3)})
    if comm.rank == 0:
        model.a.grad = model.b.grad = np.full(3, 6.0)
    comm.multi_node_mean_grad(model, zero_fill=True)
    np.testing.assert_array_equal(model.a.grad, 6 / comm.size)
    np.testing.assert_array_equal(model.b.grad, 6 / comm.size)


def test_an_update_with_gradients_of_a_sum(comm: Communicator) -> None:
    """Chainer's gradient of a sum is a view of a single number, which nobody can write to."""
    x = np.arange(4.0)[:, None] + comm.rank
    model = link_of({'p': np.ones(3), 'q': np.ones((2, 2))})
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.5), comm).setup(model)
    optimizer.update(lambda: F.mean(x * F.broadcast_to(model.p, (4, 3))) + F.sum(model.q))
    np.testing.assert_allclose(model.q.array, np.full((2, 2), 0.5), rtol=1e-15)
    mean = (1.5 + (comm.size - 1) / 2) / 3
    np.testing.assert_allclose(model.p.array, np.full(3, 1 - mean / 2), rtol=1e-14)


@pytest.mark.parametrize('shape', [(1,), (1, 1), (3,)])
@pytest.mark.parametrize('where', ['on all ranks', 'on the last'])
def test_a_gradient_that_is_read_only(
    training_comm: Communicator, shape: tuple[int, ...], where: str
) -> None:
    """A sum's gradient is one also where it has a single element."""
    comm = training_comm
    model = link_of({'p': np.ones(shape), 'q': np.ones(40_000)})
    if where == 'on all ranks' or comm.rank == comm.size - 1:
        (F.sum(model.p) * (comm.rank + 1.0)).backward()
        assert not model.p.grad.flags.writeable
    else:
        model.p.grad = np.full(shape, comm.rank + 1.0)
    model.q.grad = np.full(40_000, comm.rank + 1.0)
    comm.multi_node_mean_grad(model)
    for param in model.params():
        np.testing.assert_array_equal(param.grad, (comm.size + 1) / 2)
