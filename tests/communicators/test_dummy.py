"""Packed and unpacked, but not summed."""

from __future__ import annotations

import chainer
import numpy as np

import mnx
from mnx.communicators import Communicator


def test_every_rank_gets_its_own_gradients(comm: Communicator) -> None:
    model = chainer.Link()
    with model.init_scope():
        model.a = chainer.Parameter(np.zeros((2, 3), 'f4'))
        model.b = chainer.Parameter(np.zeros(5, 'f8'))
    for param in model.params():
        param.grad = np.full(param.shape, 1.0 + comm.rank, param.dtype)
    with mnx.create_communicator('dummy') as dummy:
        dummy.multi_node_mean_grad(model)
        for param in model.params():
            np.testing.assert_allclose(param.grad, (1.0 + comm.rank) / comm.size, rtol=1e-6)
        total = dummy.allreduce(np.array([comm.rank]))
        assert total[0] == sum(range(comm.size))
