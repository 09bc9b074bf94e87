from __future__ import annotations

import chainer
import numpy as np
import pytest
from chainer.optimizer_hooks import GradientClipping, GradientLARS, GradientNoise

from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.links import ParallelLinear
from mnx.links.split_parameter import SplitParameter
from tests.links.test_parallel_linear import MODELS, N_HIDDEN, N_IN, N_OUT, serial
from tests.links.training import assert_equal_wholes, batches, seeded


def steps(model: chainer.Link, hook: object) -> chainer.Link:
    optimizer = chainer.optimizers.SGD(0.5).setup(model)
    optimizer.add_hook(hook)
    for x, t in batches(5, (N_IN,), N_OUT):
        optimizer.update(lambda x, t: chainer.functions.softmax_cross_entropy(model(x), t), x, t)
    return model


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('threshold', [0.1, 100.0])
def test_the_norm_is_that_of_the_whole(comm: Communicator, name: str, threshold: float) -> None:
    expected = steps(seeded(serial), GradientClipping(threshold))
    found = steps(seeded(lambda: MODELS[name](comm)), GradientClipping(threshold))
    assert_equal_wholes(found, expected, 1e-11)


def test_parts_over_several_communicators(comm: Communicator) -> None:
    """Each layer is split over a communicator of its own."""
    others = [comm.split(0, -comm.rank), comm.split(0, comm.rank)]

    def make() -> chainer.Link:
        return chainer.Sequential(
            ParallelLinear(N_IN, N_HIDDEN, others[0], 'output'),
            chainer.functions.tanh,
            ParallelLinear(N_HIDDEN, N_OUT, others[1], 'output'),
        )

    expected = steps(seeded(serial), GradientClipping(0.1))
    assert_equal_wholes(steps(seeded(make), GradientClipping(0.1)), expected, 1e-11)


def test_lars_takes_no_parts(comm: Communicator) -> None:
    model = seeded(lambda: MODELS['pair'](comm))
    if comm.size == 1:
        steps(model, GradientLARS())
        return
    with pytest.raises(ArgumentError, match=r'GradientLARS: .* is a part of a parameter'):
        steps(model, GradientLARS())
    steps(seeded(serial), GradientLARS())


@pytest.mark.parametrize('name', MODELS)
def test_noise_is_that_of_one_process(comm: Communicator, name: str) -> None:
    expected = steps(seeded(serial), GradientNoise(0.3))
    found = steps(seeded(lambda: MODELS[name](comm)), GradientNoise(0.3))
    assert_equal_wholes(found, expected, 1e-11)
    states = comm.allgather_obj(np.random.rand())
    assert len(set(states)) == 1
    same = [p.array.tolist() for p in found.params() if not isinstance(p, SplitParameter)]
    assert all(other == same for other in comm.allgather_obj(same))
