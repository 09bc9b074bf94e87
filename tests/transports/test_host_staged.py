"""The memory through which arrays are staged. The staging itself: test_layer.py."""

from __future__ import annotations

import numpy as np

from mnx.arrays import Array
from mnx.transports.host_staged import Stage


def test_memory_is_used_again() -> None:
    made: list[int] = []

    def allocate(nbytes: int) -> Array:
        made.append(nbytes)
        return np.empty(nbytes, np.uint8)

    stage = Stage(allocate)
    for size in (1000, 10, 600, 999):
        block, view = stage.borrow(np.empty(size))
        assert (view.size, view.dtype) == (size, np.float64)
        stage.give_back(block)
    assert made == [8192]
    first, _ = stage.borrow(np.empty(10))
    second, _ = stage.borrow(np.empty(10))
    assert not np.shares_memory(first, second)
    assert len(made) == 2
