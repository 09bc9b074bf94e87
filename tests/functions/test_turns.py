"""Backward passes in another order on some ranks are an error, not gradients of the wrong call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import numpy as np
import pytest

import mnx.functions as MF
from mnx.communicators import Communicator
from mnx.errors import MismatchError

Variable = Any

COLLECTIVES: dict[str, Callable[[Communicator, Variable], Variable]] = {
    'allreduce': MF.allreduce,
    'max': lambda comm, x: MF.allreduce(comm, x, 'max'),
    'allgather': lambda comm, x: MF.allgather(comm, x)[0],
    'alltoall': lambda comm, x: MF.alltoall(comm, [x] * comm.size)[0],
    'bcast': MF.bcast,
    'reduce_scatter': lambda comm, x: MF.reduce_scatter(comm, [x] * comm.size),
}


def seeded(y: Variable, value: float) -> None:
    y.grad = np.full_like(y.array, value)
    y.backward()


def all_seeded(ys: list[Variable], turns: list[int]) -> None:
    for k in turns:
        seeded(ys[k], 10.0**k)


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('name', COLLECTIVES)
def test_two_calls_and_their_backward_passes(comm: Communicator, name: str) -> None:
    with comm.group(range(comm.size)) as own:  # its numbers are its own
        for orders_differ in (False, True):
            xs = [chainer.Variable(np.full(2, 1.0 + comm.rank)) for _ in range(2)]
            ys = [COLLECTIVES[name](own, x) for x in xs]
            turns = [1, 0] if orders_differ and comm.rank == 0 else [0, 1]
            if not orders_differ:
                all_seeded(ys, turns)
                continue
            with pytest.raises(MismatchError, match='backward of #'):
                all_seeded(ys, turns)


@pytest.mark.needs_ranks(2)
def test_two_messages_and_their_backward_passes(comm: Communicator) -> None:
    """The rank that has sent them, and waits for their gradients, raises."""
    if comm.rank > 1:
        return
    for first, last in ((0, 1), (1, 0)):
        if comm.rank == 1:
            ys = [MF.recv(comm, 0) for _ in range(2)]
            for k in (0, 1):
                seeded(ys[k], 10.0**k)
            continue
        xs = [chainer.Variable(np.ones(2)) for _ in range(2)]
        delegates = [MF.send(x, comm, 1) for x in xs]
        if (first, last) == (0, 1):
            for k in (first, last):
                seeded(delegates[k], 0)
            assert [x.grad.tolist() for x in xs] == [[1, 1], [10, 10]]
            continue
        for k in (first, last):
            with pytest.raises(MismatchError, match='gradient of message'):
                seeded(delegates[k], 0)
