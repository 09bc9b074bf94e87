"""n ranks with local batches train the same model as one process with all of the samples.

The promise of data parallelism, held to 1e-12 in float64: convolutions (the depthwise one has
non-contiguous gradients), a shared link, batches that do not divide by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx import testing
from mnx.communicators import Communicator

STEPS = 20


class Net(chainer.Chain):
    def __init__(self, dtype: str) -> None:
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', np.dtype(dtype)):
            self.depthwise = L.DepthwiseConvolution2D(2, 2, 3, pad=1)
            self.conv = L.Convolution2D(4, 3, 3)
            self.shared = L.Linear(27, 27)
            self.out = L.Linear(27, 5)

    def forward(self, x: np.ndarray, t: np.ndarray) -> chainer.Variable:
        h = F.tanh(self.depthwise(x))
        h = F.tanh(self.conv(h))
        h = F.tanh(self.shared(F.reshape(h, (len(x), -1))))
        return F.softmax_cross_entropy(self.out(F.tanh(self.shared(h))), t)


OPTIMIZERS: dict[str, Callable[[], chainer.Optimizer]] = {
    'MomentumSGD': lambda: chainer.optimizers.MomentumSGD(lr=0.1),
    'Adam': lambda: chainer.optimizers.Adam(alpha=0.01),
}
TOLERANCE = {'float64': 1e-12, 'float32': 1e-4}


def batches(batch: int, dtype: str) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.RandomState(0)
    return [
        (rng.standard_normal((batch, 2, 5, 5)).astype(dtype), rng.randint(0, 5, batch).astype('i'))
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize('dtype', ['float64', 'float32'])
@pytest.mark.parametrize('batch', [12, 13])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_transparency(training_comm: Communicator, name: str, batch: int, dtype: str) -> None:
    testing.assert_transparent(
        training_comm,
        lambda: Net(dtype),
        OPTIMIZERS[name],
        batches(batch, dtype),
        rtol=TOLERANCE[dtype],
    )


@pytest.mark.parametrize('flaw', ['drift', 'other gradients'])
def test_the_check_can_fail(comm: Communicator, flaw: str) -> None:
    """Ranks that see other samples than they should, and a parameter that drifts on one rank."""

    class Flawed(Net):
        def forward(self, x: np.ndarray, t: np.ndarray) -> chainer.Variable:
            if flaw == 'drift' and len(x) < 12 and comm.rank == 0:
                self.out.b.array += 1e-9
            return super().forward(x, t if flaw == 'drift' or len(x) == 12 else t[::-1])

    def check() -> None:
        testing.assert_transparent(
            comm,
            lambda: Flawed('float64'),
            OPTIMIZERS['Adam'],
            batches(12, 'float64'),
            rtol=1e-12,
        )

    if comm.size == 1:
        check()  # nothing is cut, so the flaw does not show
    else:
        with pytest.raises(AssertionError, match='not equal' if flaw == 'drift' else 'differs by'):
            check()


def seeded_net(seed: int, dtype: str) -> Net:
    np.random.seed(seed)
    return Net(dtype)


def test_a_rank_may_have_no_samples(comm: Communicator) -> None:
    """A batch of one sample on n ranks: the others give weight 0, and their NaN is not counted."""
    serial, net = seeded_net(0, 'float64'), seeded_net(comm.rank, 'float64')
    plain = chainer.optimizers.SGD().setup(serial)
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(), comm).setup(net)
    x, t = batches(1, 'float64')[0]
    mine = testing.part_of(comm, (x, t))

    def loss(x: np.ndarray, t: np.ndarray) -> chainer.Variable:
        value = net(*batches(1, 'float64')[1])
        return net(x, t) if len(x) else value * np.float64('nan')

    plain.update(serial, x, t)
    optimizer.update(loss, *mine)
    for p, expected in zip(net.params(), serial.params(), strict=True):
        np.testing.assert_allclose(p.array, expected.array, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('how', ['argument', 'callable'])
def test_weight_overrides_the_batch_size(comm: Communicator, how: str) -> None:
    """Sequences of unequal length: the mean over tokens, not over sequences."""
    lengths = np.arange(2, 2 + comm.size)
    rng = np.random.RandomState(1)
    tokens = [rng.standard_normal((1, n, 3)).astype('f4') for n in lengths]
    serial, net = (L.Linear(3, 1, initialW=np.ones((1, 3))) for _ in range(2))

    def loss(link: chainer.Link, x: np.ndarray) -> chainer.Variable:
        return F.mean(link(x.reshape(-1, 3)) ** 2)

    plain = chainer.optimizers.SGD(0.1).setup(serial)
    plain.update(loss, serial, np.concatenate(tokens, axis=1))
    mine = tokens[comm.rank]
    weight = None if how == 'argument' else (lambda link, x: x.shape[1])
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm, weight=weight)
    extra = {'weight': mine.shape[1]} if how == 'argument' else {}
    optimizer.setup(net).update(loss, net, mine, **extra)
    np.testing.assert_allclose(net.W.array, serial.W.array, rtol=1e-6)
