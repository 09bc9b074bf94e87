from __future__ import annotations

from typing import Any

import chainer
import chainer.links as L
import numpy as np
import pytest

from mnx import functions, testing
from mnx.communicators import Communicator


def test_assert_replicated_names_what_differs(comm: Communicator) -> None:
    model = chainer.Sequential(L.Linear(2, 2, initialW=1), L.Linear(None, 2))
    testing.assert_replicated(comm, model)
    if comm.size > 1:
        model[0].W.array[0, 0] += np.spacing(np.float32(1)) * (comm.rank == 1)
        with pytest.raises(AssertionError, match=r'/0/W$'):
            testing.assert_replicated(comm, model)


@pytest.mark.parametrize('n', [0, 1, 7, 12])
def test_parts_cover_the_batch(comm: Communicator, n: int) -> None:
    parts = comm.allgather(testing.part_of(comm, (np.arange(n), np.zeros((n, 2))))[0])
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_get_device() -> None:
    assert testing.get_device() == chainer.get_device('@numpy')


class TestAssertAdjoint:
    def test_accepts_an_adjoint(self, comm: Communicator) -> None:
        x = np.arange(3.0) + comm.rank
        testing.assert_adjoint(comm, lambda v: functions.allreduce(comm, 2 * v), x)
        testing.assert_adjoint(comm, lambda v, _: (v * 2, v * 3), x.astype('f4'), None)

    def test_a_part_on_each_rank(self, comm: Communicator) -> None:
        """Neither product is the same on one rank alone."""
        root = comm.size - 1
        x = np.ones(2) if comm.rank == root else None
        testing.assert_adjoint(comm, lambda v: functions.bcast(comm, v, root), x)

    @pytest.mark.parametrize('factor', [1.0, 1 + 1e-10])
    def test_refuses_what_is_not(self, comm: Communicator, factor: float) -> None:
        """Nor a gradient that is wrong on one rank, by a little."""

        class Wrong(chainer.FunctionNode):
            def forward(self, inputs: tuple[np.ndarray]) -> tuple[np.ndarray]:
                return inputs

            def backward(self, indexes: Any, gys: Any) -> Any:
                return (gys[0] * (factor if comm.rank == comm.size - 1 else 1),)

        def check() -> None:
            testing.assert_adjoint(comm, lambda x: Wrong().apply((x,))[0], np.arange(1.0, 50.0))

        if factor == 1:
            check()
        else:
            with pytest.raises(AssertionError, match='not the adjoint'):
                check()
