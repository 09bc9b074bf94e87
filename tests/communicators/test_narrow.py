"""16 bits between nodes: half the bytes, two roundings, the same bits everywhere."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnx.communicators import Communicator, narrow
from mnx.testing import create_on_nodes
from mnx.transports.mpi import MpiTransport
from tests.communicators.test_model_messages import link_of

pytestmark = pytest.mark.usefixtures('either_way')

WIRES: list[Any] = ['float16', ml_dtypes.bfloat16]


def parts(size: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((size, length)).astype('f4')


@pytest.mark.parametrize('length', [0, 1, 2, 3, 7, 1000])
@pytest.mark.parametrize('wire', WIRES, ids=str)
def test_two_roundings(comm: Communicator, length: int, wire: Any) -> None:
    dtype = np.dtype(wire)
    everyone = parts(comm.size, length)
    transport = MpiTransport(comm.mpi_comm)
    total = everyone[comm.rank].copy()
    narrow.all_reduce(transport, total, dtype, lambda own: np.multiply(own, 0.5, out=own))
    expected = everyone[0].astype(dtype).astype('f4')
    for part in everyone[1:]:
        expected += part.astype(dtype).astype('f4')
    expected = (expected * np.float32(0.5)).astype(dtype).astype('f4')
    assert total.tobytes() == expected.tobytes()
    transport.close()


NODES = [[1, 1, 1, 1], [2, 2], [1, 3], [3, 1]]


@pytest.mark.parametrize('wire', WIRES, ids=str)
@pytest.mark.parametrize('nodes', NODES, ids=str)
@pytest.mark.parametrize('name', ['naive', 'flat', 'hierarchical', 'two_dimensional', 'auto'])
def test_mean_of_gradients(comm: Communicator, name: str, nodes: list[int], wire: Any) -> None:
    with create_on_nodes(name, nodes, allreduce_grad_dtype=np.dtype(wire)) as wired:
        everyone = parts(comm.size, 70_001)
        grad = everyone[comm.rank].copy()
        model = link_of({'p': np.zeros_like(grad)})
        model.p.grad = grad
        weights = np.arange(comm.size) + 1.0
        wired.multi_node_mean_grad(model, weight=weights[comm.rank])
        exact = np.average(everyone.astype('f8'), axis=0, weights=weights)
        step = 2.0**-10 if np.dtype(wire) == np.float16 else 2.0**-7
        largest = np.abs(everyone).max()
        np.testing.assert_allclose(grad, exact, atol=2 * step * largest)
        assert len(set(comm.allgather_obj(grad.tobytes()))) == 1
        if wired.inter_size > 1:  # it was rounded, so it did travel so
            assert grad.tobytes() == grad.astype(wire).astype('f4').tobytes()


@pytest.mark.parametrize('nodes', NODES, ids=str)
def test_large_gradients_do_not_overflow(comm: Communicator, nodes: list[int]) -> None:
    """Their sum is beyond float16, their mean is not."""
    with create_on_nodes('two_dimensional', nodes, allreduce_grad_dtype='float16') as wired:
        model = link_of({'p': np.zeros(20_000, 'f4')})
        model.p.grad = np.full(20_000, 60_000.0, 'f4')
        wired.multi_node_mean_grad(model)
        np.testing.assert_array_equal(model.p.grad, np.float32(np.float16(60_000)))


@pytest.mark.parametrize('wire', ['float16', 'float32', 'float64', ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize('nodes', [[4], [2, 2], [1, 3]], ids=str)
@pytest.mark.parametrize('length', [3, 70_001])
@pytest.mark.parametrize('name', ['naive', 'flat', 'two_dimensional'])
def test_complex_gradients_stay_complex(
    comm: Communicator, name: str, length: int, nodes: list[int], wire: Any
) -> None:
    with create_on_nodes(name, nodes, allreduce_grad_dtype=np.dtype(wire)) as wired:
        everyone = parts(comm.size, length) + 1j * parts(comm.size, length)[:, ::-1]
        model = link_of({'p': np.zeros(length, 'c16'), 'q': np.zeros(length, 'f4')})
        model.p.grad = everyone[comm.rank].astype('c16')
        model.q.grad = everyone[comm.rank].real.astype('f4')
        pending = wired.start_mean_grad(model)
        wired.multi_node_mean_grad(model)
        exact, largest = everyone.mean(axis=0), np.abs(everyone).max()
        step = {2: 2.0**-7, 4: 2.0**-22, 8: 1e-7}[np.dtype(wire).itemsize]
        for found in (pending.wait(), {'/p': model.p.grad, '/q': model.q.grad}):
            np.testing.assert_allclose(found['/p'], exact, atol=2 * step * largest)
            np.testing.assert_allclose(found['/q'], exact.real, atol=2 * step * largest)
            assert found['/p'].dtype == np.complex128


def test_a_dtype_that_is_set_later(comm: Communicator) -> None:
    """Also where the way of a model's gradients is known already."""
    with create_on_nodes('shared_memory', [comm.size]) as wired:
        model = link_of({'p': np.zeros(70_001)})
        exact = (comm.size + 1) / 2 + 1 / 3
        for wire, error in ((None, 0), ('float32', 1e-8), ('float64', 0)):
            wired.set_config('allreduce_grad_dtype', wire)
            model.p.grad = np.full(70_001, comm.rank + 1 + 1 / 3)
            wired.multi_node_mean_grad(model)
            assert (np.abs(model.p.grad - exact) > 1e-10).all() == bool(error), wire
