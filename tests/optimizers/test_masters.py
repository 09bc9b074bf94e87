"""Copies in float32 of float16 parameters: equal on all ranks, and not in the way of new values."""

from __future__ import annotations

import chainer
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.optimizers import masters
from mnx.optimizers.replicate import is_replicated, replicate


def half(n_steps: int = 2) -> chainer.Optimizer:
    """Return an optimizer whose copies hold more than the float16 parameters, on all ranks."""
    with chainer.using_config('dtype', np.float16):
        model = L.Linear(3, 2, initialW=np.linspace(1, 2, 6).reshape(2, 3))
    optimizer = chainer.optimizers.MomentumSGD(1e-5)
    optimizer.use_fp32_update()
    optimizer.setup(model)
    step(optimizer, n_steps)
    return optimizer


def step(optimizer: chainer.Optimizer, n_steps: int = 1) -> None:
    for _ in range(n_steps):
        for param in optimizer.target.params():
            param.grad = np.ones_like(param.array)
        optimizer.update()


def copies(optimizer: chainer.Optimizer) -> dict[str, bytes]:
    return {name: copy.tobytes() for name, copy in masters.capture(optimizer).items()}


def test_there_and_back() -> None:
    trained, fresh = half(), half(0)
    assert (sorted(copies(trained)), copies(fresh)) == (['/W', '/b'], {})
    rounded = trained.target.W.array.astype(np.float32)
    assert (masters.capture(trained)['/W'] != rounded).all()
    masters.restore(fresh, masters.capture(trained))
    assert copies(fresh) == copies(trained)
    masters.restore(fresh, {})
    assert copies(fresh) == {}
    assert masters.capture(chainer.optimizers.SGD()) == {}


@pytest.mark.needs_ranks(2)
def test_copies_that_differ_are_found_and_replaced(comm: Communicator) -> None:
    optimizer = half(2 if comm.rank == 0 else 50)
    optimizer.target.W.array[...], optimizer.target.b.array[...] = 1.5, 0
    replicate(optimizer, comm)
    assert is_replicated(optimizer, comm)
    assert len(set(comm.allgather_obj(str(copies(optimizer))))) == 1
    assert (masters.capture(optimizer)['/W'] == masters.capture(half())['/W']).all()
    if comm.rank == 1:
        optimizer.target.W.update_rule._fp32_param.array[0, 0] += 1e-6
    assert not is_replicated(optimizer, comm)


@pytest.mark.needs_ranks(2)
def test_values_that_are_broadcast_stay(comm: Communicator) -> None:
    optimizer = mnx.create_multi_node_optimizer(half(), comm)
    optimizer.target.W.array[...] = comm.rank
    comm.bcast_data(optimizer.target)
    step(optimizer)
    assert abs(optimizer.target.W.array).max() < 0.01
