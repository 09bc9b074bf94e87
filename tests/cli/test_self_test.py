"""The self-test finds nothing in a sound communicator, and a planted fault in another one."""

from __future__ import annotations

import numpy as np
import pytest

from mnx.cli import self_test
from mnx.communicators import Communicator, create_communicator


@pytest.mark.parametrize('name', self_test.names(with_nccl=False))
def test_sound_communicators(name: str):
    with create_communicator(name) as comm:
        assert self_test.problems(comm) == []


@pytest.mark.parametrize('call', ['allreduce', 'bcast', 'alltoall'])
def test_a_wrong_value_on_the_last_rank_is_known_to_all(
    comm: Communicator, call: str, monkeypatch: pytest.MonkeyPatch
):
    sound = getattr(comm, call)

    def wrong(*args, **kwargs):
        found = sound(*args, **kwargs)
        return tuple(x + 1 for x in found) if isinstance(found, tuple) else found + 1

    if comm.rank == comm.size - 1:
        monkeypatch.setattr(comm, call, wrong)
    assert f'rank {comm.size - 1}: {call} gave wrong values' in self_test.problems(comm)


def test_a_wrong_mean_is_found(comm: Communicator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comm, 'multi_node_mean_grad', lambda model: None)
    found = self_test.problems(comm)
    # equal gradients need no mean: on one rank, nothing is missed
    assert bool(found) == (comm.size > 1)
    assert all('gradients gave wrong values' in problem for problem in found)


def test_an_error_is_told(comm: Communicator, monkeypatch: pytest.MonkeyPatch):
    def fail(x: np.ndarray) -> None:
        raise ZeroDivisionError('planted')

    monkeypatch.setattr(comm, 'multi_node_mean_grad', fail)
    assert self_test.problems(comm) == [
        f'rank {rank}: ZeroDivisionError: planted' for rank in range(comm.size)
    ]


def test_a_wrong_dtype_is_found():
    assert not self_test._equal(np.ones(2, 'f4'), np.ones(2, 'f8'))
    assert not self_test._equal((np.ones(2),), (np.ones(2), np.ones(2)))
