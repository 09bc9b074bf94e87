"""Means of gradients that are started now and fetched later: those of `multi_node_mean_grad`."""

from __future__ import annotations

import gc
import weakref

import chainer
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError

SHAPES = {'a': (40, 30), 'b': (7,), 'c': (), 'd': (3, 0), 'e': (5, 4, 3)}


def model_with_gradients(rank: int, dtype: str = 'f8', missing: str = '') -> chainer.Link:
    model = chainer.Link()
    rng = np.random.RandomState(rank)
    for name, shape in SHAPES.items():
        model.add_param(name, shape, dtype)
        grad = np.asarray(rng.standard_normal(shape)).astype(dtype)
        model.__dict__[name].grad = None if name == missing else grad
    return model


def compare(comm: Communicator, dtype: str, weight: float | None, tol: float) -> None:
    model, other = (model_with_gradients(comm.rank, dtype) for _ in range(2))
    before = {name: p.grad.copy() for name, p in model.namedparams()}
    pending = comm.start_mean_grad(model, weight=weight)
    for name, param in model.namedparams():
        np.testing.assert_array_equal(param.grad, before[name])
        param.grad[...] = 99  # what travels is a copy
    comm.allreduce(np.ones(3))  # other collectives do not mind
    comm.multi_node_mean_grad(other, weight=weight)
    means = pending.wait()
    assert pending.test()
    assert means.keys() == before.keys()
    for name, param in other.namedparams():
        assert (means[name].dtype, means[name].shape) == (param.grad.dtype, param.grad.shape)
        np.testing.assert_allclose(means[name], param.grad, rtol=tol, atol=tol, err_msg=name)
    assert pending.wait() is means


def test_as_multi_node_mean_grad(training_comm: Communicator) -> None:
    compare(training_comm, 'f8', None, 1e-13)
    compare(training_comm, 'f8', training_comm.rank + 0.5, 1e-13)


@pytest.mark.parametrize(('dtype', 'tol'), [('f4', 1e-6), ('f2', 1e-3)])
@pytest.mark.parametrize('wire', [None, 'f2', 'f4', 'f8'])
def test_dtypes(dtype: str, tol: float, wire: str | None) -> None:
    with mnx.create_communicator('flat', allreduce_grad_dtype=wire) as comm:
        compare(comm, dtype, None, tol)


def test_dummy_sends_nothing(comm: Communicator) -> None:
    with mnx.create_communicator('dummy') as dummy:
        model = model_with_gradients(comm.rank)
        means = dummy.start_mean_grad(model).wait()
        np.testing.assert_allclose(means['/a'], model.a.grad / comm.size, rtol=1e-15)


def test_missing_gradients(comm: Communicator) -> None:
    last = comm.rank == comm.size - 1
    filled = comm.start_mean_grad(
        model_with_gradients(comm.rank, missing='b' if last else ''), True
    )
    shares = [model_with_gradients(r).b.grad for r in range(comm.size - 1)]
    expected = np.sum(shares, axis=0) / comm.size if shares else np.zeros(7)
    np.testing.assert_allclose(filled.wait()['/b'], expected, rtol=1e-13)
    assert '/b' not in comm.start_mean_grad(model_with_gradients(0, missing='b')).wait()


@pytest.mark.needs_ranks(2)
def test_ranks_that_differ(comm: Communicator) -> None:
    model = model_with_gradients(comm.rank, missing='b' if comm.rank == 1 else '')
    with pytest.raises(MismatchError, match=r'/b float64\(7,\)'):
        comm.start_mean_grad(model)
    with pytest.raises(ArgumentError, match='start_mean_grad: a weight is finite'):
        comm.start_mean_grad(model, weight=-1.0 if comm.rank == 1 else 1.0)


def test_finalize_waits(comm: Communicator) -> None:
    own = mnx.create_communicator('naive')
    model = model_with_gradients(comm.rank)
    pending = own.start_mean_grad(model)
    own.finalize()
    expected = comm.start_mean_grad(model).wait()
    np.testing.assert_array_equal(pending.wait()['/a'], expected['/a'])


def test_what_nobody_waits_for_is_kept_until_it_has_arrived(comm: Communicator) -> None:
    """MPI still writes there."""
    with mnx.create_communicator('naive') as own:
        buckets = own.start_mean_grad(model_with_gradients(comm.rank))._pending
        kept = [weakref.ref(bucket) for bucket in buckets]
        del buckets
        gc.collect()
        assert all(bucket() is not None for bucket in kept)
    gc.collect()
    assert all(bucket() is None for bucket in kept)


def test_not_finite_in_debug_mode(comm: Communicator) -> None:
    model = model_with_gradients(comm.rank)
    if comm.rank == comm.size - 1:
        model.e.grad[1, 1, 1] = np.nan
    with chainer.using_config('debug', True), pytest.raises(ArgumentError, match=r'diverged.*/e'):
        comm.start_mean_grad(model).wait()
