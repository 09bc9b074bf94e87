from __future__ import annotations

import chainer
import chainer.links as L
import numpy as np
import pytest

from mnx import testing
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
