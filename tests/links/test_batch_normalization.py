"""n ranks with parts of a batch against Chainer's own batch normalisation of the whole."""

from __future__ import annotations

import copy
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx import testing
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, DtypeError, MismatchError
from mnx.links import MultiNodeBatchNormalization, create_mnbn_model

SIZES = {'equal': [4, 4, 4, 4], '7 + 3 + 0': [7, 3, 0, 2], 'one': [1, 0, 0, 0]}


def data(
    comm: Communicator, sizes: list[int], shape: tuple[int, ...], dtype: Any = 'f8'
) -> tuple[np.ndarray, np.ndarray, slice]:
    """Return a whole batch, coefficients of a loss, and which part is this rank's."""
    stops = np.cumsum(sizes[: comm.size])
    generator = np.random.default_rng(0)
    x = generator.normal(2, 3, (int(stops[-1]), *shape)).astype(dtype)
    mine = slice(int(stops[comm.rank] - sizes[comm.rank]), int(stops[comm.rank]))
    return x, generator.normal(size=x.shape), mine


def gradients(loss: Any, x: Any, bn: Any) -> list[Any]:
    return chainer.grad([loss], [x, bn.gamma, bn.beta], enable_double_backprop=True)


def prepared(bn: Any) -> Any:
    size = bn.gamma.size
    bn.gamma.array[...] = np.linspace(0.5, 2, size).reshape(bn.gamma.shape)
    bn.beta.array[...] = np.linspace(-1, 1, size).reshape(bn.beta.shape)
    return bn


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize(
    ('shape', 'size', 'axis'),
    [((3,), 3, None), ((3, 2, 2), 3, None), ((2, 4), (2, 4), None), ((3, 4), 4, (0, 1))],
    ids=['dense', 'images', 'tuple', 'axis'],
)
def test_as_the_whole_batch(
    comm: Communicator, shape: tuple[int, ...], size: Any, axis: Any, sizes: str
) -> None:
    """Values, gradients, gradients of gradients, statistics; losses are parts of one sum."""
    X, W, mine = data(comm, SIZES[sizes], shape)
    with chainer.using_config('dtype', np.dtype('f8')):
        whole = prepared(L.BatchNormalization(size, axis=axis))
        bn = prepared(MultiNodeBatchNormalization(size, comm, axis=axis, losses='sum'))
    found, expected = [], []
    for link, part, out in ((whole, slice(None), expected), (bn, mine, found)):
        x = chainer.Variable(X[part])
        y = link(x)
        gx, ggamma, gbeta = gradients(F.sum(W[part] * F.tanh(y)), x, link)
        (ggx,) = chainer.grad([F.sum(W[part] ** 2 * gx)], [x])
        out += [y.array, gx.array, ggx.array, ggamma.array, gbeta.array]
        out += [link.avg_mean, link.avg_var]
    expected[:3] = [a[mine] for a in expected[:3]]
    found[3:5] = [comm.allreduce(a) for a in found[3:5]]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    testing.assert_replicated(comm, bn)


@pytest.mark.parametrize('sizes', ['equal', '7 + 3 + 0'])
def test_training_is_transparent(comm: Communicator, sizes: str) -> None:
    """With the multi-node optimizer and losses that are means over local batches."""
    X, T, mine = data(comm, SIZES[sizes], (3,))

    def model(bn: Any) -> chainer.Link:
        np.random.seed(5)
        layers = chainer.Sequential(L.Linear(3, 4), bn, F.tanh, L.Linear(4, 3))
        return chainer.Sequential(*layers)

    def loss(model: Any, x: np.ndarray, t: np.ndarray) -> Any:
        return F.sum((model(x) - t) ** 2) / max(len(x), 1)

    with chainer.using_config('dtype', np.dtype('f8')):
        whole = model(L.BatchNormalization(4))
        parts = model(MultiNodeBatchNormalization(4, comm))
    plain = chainer.optimizers.SGD(0.1).setup(whole)
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm).setup(parts)
    for _ in range(4):
        plain.update(lambda: loss(whole, X, T))
        optimizer.update(lambda x, t: loss(parts, x, t), X[mine], T[mine])
    testing.assert_replicated(comm, parts)
    for (name, p), q in zip(sorted(parts.namedparams()), dict(sorted(whole.namedparams())).values(),
                            strict=True):  # fmt: skip
        np.testing.assert_allclose(p.array, q.array, rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(parts[1].avg_var, whole[1].avg_var, rtol=1e-9)


def test_large_mean_small_deviation(comm: Communicator) -> None:
    generator = np.random.default_rng(comm.rank)
    x = generator.normal(1e3, 0.1, (50 + comm.rank, 3)).astype('f4')
    X = np.concatenate(comm.allgather(x))
    bn, whole = MultiNodeBatchNormalization(3, comm, eps=1e-7), L.BatchNormalization(3, eps=1e-7)
    stop = sum(len(part) for part in comm.allgather(x)[: comm.rank + 1])
    mine = slice(stop - len(x), stop)
    # Chainer's own mean, added up in float32, is off by 1e-4
    np.testing.assert_allclose(bn(x).array, whole(X).array[mine], atol=5e-3)
    exact = (X - X.mean(0, dtype='f8')) / X.std(0, dtype='f8')
    np.testing.assert_allclose(bn(x).array, exact[mine], atol=1e-4)


@pytest.mark.parametrize('sizes', ['equal', '7 + 3 + 0'])
def test_large_mean_as_chainer_in_float64(comm: Communicator, sizes: str) -> None:
    """In float32, also backward: Chainer's own sums of these are good to 3e-3 only."""
    X, W, mine = data(comm, [16 * n for n in SIZES[sizes]], (3,))
    X = ((X - 2) / 30 + 1e3).astype('f4')
    bn, whole = (
        MultiNodeBatchNormalization(3, comm, losses='sum'),
        L.BatchNormalization(3, dtype='f8'),
    )
    x, x0 = chainer.Variable(X[mine]), chainer.Variable(X.astype('f8'))
    y, y0 = bn(x), whole(x0)
    F.sum(W[mine].astype('f4') * y).backward()
    F.sum(W * y0).backward()
    np.testing.assert_allclose(y.array, y0.array[mine], atol=1e-5)
    np.testing.assert_allclose(x.grad, x0.grad[mine], atol=1e-5 * abs(x0.grad).max())
    np.testing.assert_allclose(bn.avg_var, whole.avg_var, rtol=1e-5)
    np.testing.assert_allclose(bn.avg_mean, whole.avg_mean, rtol=1e-6)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('f2', 1e-2), ('f4', 1e-5)])
@pytest.mark.parametrize('mixed', [False, True])
def test_dtypes(comm: Communicator, dtype: str, tolerance: float, mixed: bool) -> None:
    X, _, mine = data(comm, SIZES['equal'], (3,), dtype)
    with chainer.using_config('dtype', chainer.mixed16 if mixed else np.dtype(dtype)):
        bn, whole = MultiNodeBatchNormalization(3, comm), L.BatchNormalization(3)
    y = bn(X[mine])
    assert (y.dtype, bn.avg_mean.dtype) == (dtype, whole.avg_mean.dtype)
    if not (mixed and dtype == 'f4'):
        np.testing.assert_allclose(y.array, whole(X).array[mine], atol=tolerance)
        np.testing.assert_allclose(bn.avg_var, whole.avg_var, rtol=tolerance)
    F.sum(y).backward()
    assert bn.gamma.grad.dtype == bn.gamma.dtype


def test_finetuning_and_test_mode(comm: Communicator) -> None:
    X, _, mine = data(comm, SIZES['7 + 3 + 0'], (3,))
    with chainer.using_config('dtype', np.dtype('f8')):
        bn, whole = MultiNodeBatchNormalization(3, comm), L.BatchNormalization(3)
    for link, part in ((bn, mine), (whole, slice(None))):
        link(X[part], finetune=True)
        link(X[part] ** 2, finetune=True)
    assert bn.N == whole.N == 2
    np.testing.assert_allclose(bn.avg_mean, whole.avg_mean, rtol=1e-9)
    bn.start_finetuning()
    assert bn.N == 0
    if comm.rank == 0:  # nobody else is needed
        with chainer.using_config('train', False):
            np.testing.assert_allclose(bn(X).array, whole(X).array, rtol=1e-9)


def test_without_gamma_and_beta(comm: Communicator) -> None:
    X, _, mine = data(comm, SIZES['equal'], (3,))
    bn = MultiNodeBatchNormalization(3, comm, use_gamma=False, use_beta=False)
    assert not list(bn.params())
    expected = (X - X.mean(0)) / np.sqrt(X.var(0) + 2e-5)
    np.testing.assert_allclose(bn(X[mine]).array, expected[mine], rtol=1e-9)


def test_create_mnbn_model(comm: Communicator) -> None:
    class Block(chainer.Chain):
        def __init__(self) -> None:
            super().__init__()
            with self.init_scope():
                self.bn = L.BatchNormalization(4, decay=0.5)
                self.lazy = L.BatchNormalization(axis=(0,))

        def forward(self, x: Any) -> Any:
            return self.lazy(self.bn(x))

    original = chainer.Sequential(
        L.Linear(3, 4), Block(), F.relu, chainer.ChainList(L.BatchRenormalization(4))
    )
    model = create_mnbn_model(original, comm)
    bn, lazy = model[1].bn, model[1].lazy
    assert type(bn) is type(lazy) is MultiNodeBatchNormalization
    assert type(original[1].bn) is L.BatchNormalization
    assert type(model[3][0]) is L.BatchRenormalization
    assert (bn.comm, bn.decay, lazy.axis, lazy.avg_mean) == (comm, 0.5, (0,), None)
    assert sorted(n for n, _ in model.namedparams()) == sorted(n for n, _ in original.namedparams())
    X, _, mine = data(comm, SIZES['7 + 3 + 0'], (3,), 'f4')
    found = model[1](model[0](X[mine])).array
    np.testing.assert_allclose(found, original[1](original[0](X)).array[mine], atol=1e-5)
    assert type(create_mnbn_model(L.BatchNormalization(2), comm)) is MultiNodeBatchNormalization


def test_copies_share_the_communicator(comm: Communicator) -> None:
    link = chainer.Sequential(MultiNodeBatchNormalization(3, comm))
    for other in (link.copy(mode='copy'), copy.deepcopy(link), link.repeat(1)[0]):
        assert other[0].comm is comm
        other(np.ones((2, 3), 'f'))


def test_misuse(comm: Communicator) -> None:
    for wrong in ('mpi4py', 'nccl'):
        with pytest.raises(ValueError, match='communication_backend'):
            MultiNodeBatchNormalization(3, comm, communication_backend=wrong)
        with pytest.raises(ValueError, match='communication_backend'):
            create_mnbn_model(L.BatchNormalization(3), comm, wrong)
    with pytest.raises(ArgumentError, match='losses'):
        MultiNodeBatchNormalization(3, comm, losses='max')
    with pytest.raises(ArgumentError, match='size'):
        MultiNodeBatchNormalization(None, comm)
    with pytest.raises(ArgumentError, match='no rank has any samples'):
        MultiNodeBatchNormalization(3, comm)(np.ones((0, 3), 'f'))
    if comm.size > 1:
        with pytest.raises(MismatchError):
            MultiNodeBatchNormalization(3 + comm.rank, comm)(np.ones((2, 3 + comm.rank), 'f'))


def test_integers_are_an_error_on_all_ranks(comm: Communicator) -> None:
    bn = MultiNodeBatchNormalization(3, comm)
    x = np.ones((4, 3), 'i8' if comm.rank == comm.size - 1 else 'f4')
    with pytest.raises(DtypeError, match='floating-point'):
        bn(x)
    assert bn(np.ones((4, 3), 'f4')).dtype == np.float32


@pytest.mark.parametrize('shape', [(4, 1), (4,), (4, 3, 1)], ids=str)
def test_other_channels_are_an_error_on_all_ranks(
    comm: Communicator, shape: tuple[int, ...]
) -> None:
    """They would be broadcast where there is neither gamma nor beta."""
    bn = MultiNodeBatchNormalization((3, 2), comm, use_gamma=False, use_beta=False)
    with pytest.raises(ArgumentError, match='other channels'):
        bn(np.ones(shape if comm.rank == 0 else (4, 3, 2), 'f4'))
    assert not bn.avg_mean.any()
