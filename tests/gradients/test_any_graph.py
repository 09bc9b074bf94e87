"""Random programs, another one on each rank and in each pass: the gradients of one process."""

from __future__ import annotations

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from tests.gradients.models import gradients
from tests.gradients.test_injection import assert_close, assert_same_bits

LAYERS = 5
UNITS = 4


class Layers(chainer.ChainList):
    """Some layers, two of which share a matrix."""

    def __init__(self, seed: int) -> None:
        np.random.seed(seed)
        with chainer.using_config('dtype', np.dtype('f8')):
            super().__init__(*[L.Linear(UNITS, UNITS) for _ in range(LAYERS)])
            self[4].W = self[1].W


def loss_of_a_program(model: Layers, seed: int) -> chainer.Variable:
    """Run a program drawn from `seed`: layers, branches, parameters on their own, derivatives."""
    rng = np.random.RandomState(seed)
    x = chainer.Variable(rng.standard_normal((3, UNITS)))
    values = [x]
    for _ in range(rng.randint(1, 9)):
        h, layer = values[rng.randint(len(values))], model[rng.randint(LAYERS)]
        step = rng.randint(6)
        if step < 3:
            values.append(F.tanh(layer(h)))
        elif step == 3:
            values.append(F.tanh(h + values[-1]))
        elif step == 4:
            values.append(F.tanh(F.linear(h, layer.W * 2)))  # outside of its link
        else:
            (slope,) = chainer.grad([F.sum(F.tanh(layer(h)))], [h], enable_double_backprop=True)
            values.append(slope)
    loss = sum(F.sum(value * value) for value in values[1 + rng.randint(len(values)) :])
    return F.sum(model[rng.randint(LAYERS)](values[-1])) + loss  # some parameter at least


@pytest.mark.parametrize('bucket_bytes', [1, 200])
def test_any_graph(comm: Communicator, bucket_bytes: int) -> None:
    model, early = Layers(comm.rank), 0
    injection = mnx.inject_allreduce(model, comm, bucket_bytes=bucket_bytes)
    for turn in range(40):
        if turn % 5 == 4:  # what was late once is late for ever; begin anew
            injection.remove()
            injection = mnx.inject_allreduce(model, comm, bucket_bytes=bucket_bytes)
        seeds = [1000 * turn + rank for rank in range(comm.size)]
        serial = Layers(0)
        serial.cleargrads()
        (sum(loss_of_a_program(serial, seed) for seed in seeds) / comm.size).backward()
        model.cleargrads()
        loss_of_a_program(model, seeds[comm.rank]).backward()
        assert_same_bits(comm, gradients(model))
        assert_close(gradients(model), gradients(serial))
        early += injection.exchange.started_early
    assert early > 0 or bucket_bytes > 1  # sometimes buckets filled before the end
