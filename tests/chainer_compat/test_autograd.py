"""What models are made of: gradients of gradients, mixed precision, recurrent links, pickling."""

from __future__ import annotations

import copy
import pickle

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import gradient_check


@pytest.fixture(autouse=True)
def warnings_are_errors(recwarn):
    yield
    assert [str(w.message) for w in recwarn] == []


def test_gradient_of_a_gradient():
    x = chainer.Variable(np.array([0.5, -1, 2], dtype=np.float64))
    [gx] = chainer.grad([F.sum(x**3)], [x], enable_double_backprop=True)
    [ggx] = chainer.grad([F.sum(gx)], [x])
    np.testing.assert_allclose(gx.array, 3 * x.array**2)
    np.testing.assert_allclose(ggx.array, 6 * x.array)


def test_second_order_through_a_network():
    random = np.random.default_rng(0)
    x, gy, ggx = (random.standard_normal(s) for s in ((2, 3, 5, 5), (2, 4), (2, 3, 5, 5)))
    with chainer.using_config('dtype', np.float64):
        convolution, linear = L.Convolution2D(3, 2, 3), L.Linear(18, 4)
    convolution(x)

    def net(x):
        return linear(F.tanh(F.max_pooling_2d(F.softplus(convolution(x)), 1)))

    gradient_check.check_double_backward(net, x, gy, ggx, dtype=np.float64, atol=1e-4, rtol=1e-4)


def test_mixed16():
    with chainer.using_config('dtype', chainer.mixed16):
        model = L.Classifier(chainer.Sequential(L.Linear(4, 8), F.relu, L.Linear(8, 2)))
        optimizer = chainer.optimizers.MomentumSGD(0.1).setup(model)
        optimizer.loss_scaling()
        x = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float16)
        labels = (x[:, 0] > 0).astype(np.int32)
        losses = []
        for _ in range(20):
            optimizer.update(model, x, labels)
            losses.append(float(model.loss.array))
    dtypes = {param.dtype for param in model.params()}
    assert dtypes == {np.dtype(np.float16)}
    assert all(np.isfinite(losses))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize('make', [L.NStepLSTM, L.NStepBiGRU])
def test_recurrent_over_sequences(make):
    link = make(2, 3, 4, dropout=0.0)
    xs = [np.ones((length, 3), dtype=np.float32) for length in (5, 2, 3)]
    *_, ys = link(None, None, xs) if make is L.NStepLSTM else link(None, xs)
    F.sum(F.concat(ys, axis=0)).backward()
    assert [len(y) for y in ys] == [5, 2, 3]
    assert all(param.grad is not None for param in link.params())


def test_recurrent_with_truncation():
    link = L.LSTM(3, 4)
    for _ in range(3):
        y = link(np.ones((2, 3), dtype=np.float32))
    F.sum(y).backward()
    y.unchain_backward()
    assert link.upward.W.grad.shape == (16, 3)


# Not MSVAG: in Chainer it does not save the powers of its beta.
OPTIMIZERS = [
    chainer.optimizers.SGD,
    chainer.optimizers.MomentumSGD,
    chainer.optimizers.CorrectedMomentumSGD,
    chainer.optimizers.NesterovAG,
    chainer.optimizers.AdaGrad,
    chainer.optimizers.AdaDelta,
    chainer.optimizers.Adam,
    chainer.optimizers.AdamW,
    chainer.optimizers.AMSGrad,
    chainer.optimizers.AdaBound,
    chainer.optimizers.AMSBound,
    chainer.optimizers.RMSprop,
    chainer.optimizers.RMSpropGraves,
    chainer.optimizers.SMORMS3,
]


@pytest.mark.parametrize('make', OPTIMIZERS, ids=lambda make: make.__name__)
def test_optimizers(make, tmp_path):
    """Each lowers a loss, and goes on from a file as if nothing had happened."""

    def setup():
        np.random.seed(0)
        link = L.Linear(3, 1)
        optimizer = make().setup(link)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-3))
        return link, optimizer

    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    link, optimizer = setup()

    def loss():
        return F.mean((link(x) - x[:, :1]) ** 2)

    before = float(loss().array)
    for _ in range(5):
        optimizer.update(loss)
    assert float(loss().array) < before
    chainer.serializers.save_npz(tmp_path / 'link.npz', link)
    chainer.serializers.save_npz(tmp_path / 'optimizer.npz', optimizer)
    optimizer.update(loss)
    expected = link.W.array

    link, optimizer = setup()
    chainer.serializers.load_npz(tmp_path / 'link.npz', link)
    chainer.serializers.load_npz(tmp_path / 'optimizer.npz', optimizer)
    optimizer.update(loss)
    np.testing.assert_array_equal(link.W.array, expected)


@pytest.mark.parametrize('again', [pickle.dumps, copy.deepcopy], ids=['pickle', 'deepcopy'])
def test_models_are_copied(again):
    model = L.Classifier(chainer.Sequential(L.Linear(3, 4), F.relu, L.Linear(4, 2)))
    optimizer = chainer.optimizers.Adam().setup(model)
    x = np.ones((2, 3), dtype=np.float32)
    optimizer.update(model, x, np.zeros(2, dtype=np.int32))
    other = pickle.loads(again(model)) if again is pickle.dumps else again(model)
    np.testing.assert_array_equal(other.predictor(x).array, model.predictor(x).array)
