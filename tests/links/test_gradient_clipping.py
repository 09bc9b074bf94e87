from __future__ import annotations

import chainer
import numpy as np
import pytest
from chainer.optimizer_hooks import GradientClipping

from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.links import ParallelGradientClipping
from tests.links.test_parallel_linear import MODELS, N_IN, N_OUT, serial
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
    hook = ParallelGradientClipping(threshold, comm)
    found = steps(seeded(lambda: MODELS[name](comm)), hook)
    assert_equal_wholes(found, expected, 1e-11)


def test_threshold(comm: Communicator) -> None:
    with pytest.raises(ArgumentError, match='threshold is positive'):
        ParallelGradientClipping(np.nan, comm)
