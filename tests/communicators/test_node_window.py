"""Gradients larger than the window, in every dtype, on every kind of node."""

from __future__ import annotations

import chainer
import numpy as np
import pytest

from mnx import testing
from mnx.communicators import Communicator, two_dimensional

pytestmark = pytest.mark.usefixtures('either_way')


def model_with(sizes: list[int], dtypes: list[str], rank: int) -> chainer.Link:
    model = chainer.Link()
    rng = np.random.default_rng(rank)
    with model.init_scope():
        for i, size in enumerate(sizes):
            dtype = dtypes[i % len(dtypes)]
            setattr(model, f'p{i}', chainer.Parameter(np.zeros(size, dtype)))
            model.__dict__[f'p{i}'].grad = rng.standard_normal(size).astype(dtype)
    return model


@pytest.mark.parametrize('chunk', [256, 4096])
@pytest.mark.parametrize('dtypes', [['f4'], ['f8', 'f4', 'f2']], ids=str)
@pytest.mark.parametrize('name', ['hierarchical', 'two_dimensional'])
def test_many_chunks(
    comm: Communicator, monkeypatch, name: str, dtypes: list[str], chunk: int
) -> None:
    """Short chunks: many of them, arrays that go over several, chunks that hold several."""
    monkeypatch.setattr(two_dimensional, 'WINDOW_FROM', 0)
    monkeypatch.setattr(two_dimensional, 'CHUNK_IN_NODE', chunk)
    monkeypatch.setattr(two_dimensional, 'CHUNK_ACROSS_NODES', chunk)
    sizes = [100, 3, 0, 17, 1500, 1, 64]
    for nodes in ([comm.size], [1], [2], [3, 1]):
        with testing.create_on_nodes(name, nodes) as made:
            model = model_with(sizes, dtypes, comm.rank)
            expected = [
                np.mean([m.__dict__[f'p{i}'].grad.astype('f8') for m in everyone], axis=0)
                for i in range(len(sizes))
                for everyone in [[model_with(sizes, dtypes, r) for r in range(comm.size)]]
            ]
            for _ in range(2):  # windows and views are kept
                for i, p in enumerate(model_with(sizes, dtypes, comm.rank).params()):
                    getattr(model, f'p{i}').grad[...] = p.grad
                made.multi_node_mean_grad(model)
                for i, mean in enumerate(expected):
                    grad = getattr(model, f'p{i}').grad
                    eps = np.finfo(grad.dtype).eps
                    np.testing.assert_allclose(grad, mean, rtol=4 * eps, atol=4 * eps)
                    bits = comm.allgather_obj(grad.tobytes())
                    assert len(set(bits)) == 1


@pytest.mark.parametrize('weighted', [False, True])
def test_a_parameter_with_two_names(training_comm: Communicator, weighted: bool) -> None:
    """Tied weights, two chunks of the window apart: old and new values must not be mixed."""
    comm = training_comm
    tied = chainer.Parameter(np.zeros(2 * 262_144 - 1000, 'f4'))
    model = chainer.Link()
    with model.init_scope():
        model.a, model.m, model.z = tied, chainer.Parameter(np.zeros(1000, 'f4')), tied
    for param in model.params():
        param.grad = np.full(param.shape, 1.0 + comm.rank, 'f4')
    weights = np.arange(1.0, comm.size + 1)
    weight = weights[comm.rank] if weighted else None
    comm.multi_node_mean_grad(model, weight=weight)
    ranks = np.arange(1.0, comm.size + 1)
    expected = np.average(ranks, weights=weights if weighted else None)
    for param in model.params():
        np.testing.assert_allclose(param.grad, expected, rtol=1e-6)


def test_same_bits_from_run_to_run(comm: Communicator) -> None:
    with testing.create_on_nodes('two_dimensional', [2]) as made:
        results = []
        for _ in range(5):
            model = model_with([300_001], ['f4'], comm.rank)
            made.multi_node_mean_grad(model)
            results.append(model.p0.grad.tobytes())
        assert len(set(results)) == 1
