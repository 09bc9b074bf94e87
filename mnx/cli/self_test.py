"""Does communication give the right numbers? Small exact messages, compared with what they must be.

Each test makes all of its calls before anything is compared, so that a rank with a wrong number
does not leave the others in a collective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import numpy as np

from mnx import functions
from mnx.communicators import Communicator
from mnx.communicators.factory import COMMUNICATORS

LENGTH = 10_007  # longer than what travels in one piece with its header
Results = dict[str, tuple[Any, Any]]  # call: what came, what must have come


def names(*, with_nccl: bool) -> list[str]:
    """Return the communicators that exchange gradients here."""
    return [
        name
        for name, cls in COMMUNICATORS.items()
        if name not in ('dummy', 'local') and (with_nccl or not cls.needs_nccl)
    ]


def values(rank: int) -> Any:
    """Return what a rank sends: whole numbers, so that sums are exact in any order."""
    return np.arange(LENGTH, dtype=np.float32) % 97 + rank


def messages(comm: Communicator) -> Results:
    """Send around a ring, each rank to the next. Collective."""
    if comm.size == 1:
        return {}
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    if comm.rank == 0:
        comm.send(values(0), after, 0)
        found = comm.recv(before, 0)
    else:
        found = comm.recv(before, 0)
        comm.send(values(comm.rank), after, 0)
    return {'send': (found, values(before))}


def collectives(comm: Communicator) -> Results:
    """Make every collective of arrays once. Collective."""
    size, own, last = comm.size, values(comm.rank), comm.size - 1
    everyone = [values(rank) for rank in range(size)]
    total = sum(everyone)
    row = [own[: to + 1] for to in range(size)]
    column = [x[: comm.rank + 1] for x in everyone]
    at_last = comm.rank == last
    return {
        'allreduce': (comm.allreduce(own), total),
        'bcast': (comm.bcast(own if at_last else None, root=last), everyone[last]),
        'gather': (comm.gather(own, root=last), tuple(everyone) if at_last else None),
        'allgather': (comm.allgather(own), tuple(everyone)),
        'scatter': (comm.scatter(everyone if at_last else None, root=last), own),
        'alltoall': (comm.alltoall(row), tuple(column)),
        'objects': (comm.allgather_obj({'rank': comm.rank}), [{'rank': r} for r in range(size)]),
    }


def gradients(comm: Communicator) -> Results:
    """Take the mean of a model's gradients, and a derivative through a collective. Collective."""
    model = chainer.Chain()
    with model.init_scope():
        for i, length in enumerate((LENGTH, 3)):
            setattr(model, f'p{i}', chainer.Parameter(np.zeros(length, np.float32)))
    for param in model.params():
        param.grad = values(comm.rank)[: param.size] * comm.size
    comm.multi_node_mean_grad(model)
    total = sum(values(rank) for rank in range(comm.size))
    x = chainer.Variable(values(comm.rank))
    chainer.functions.sum(functions.allreduce(comm, x) * np.float32(comm.rank + 1)).backward()
    weights = np.full(LENGTH, comm.size * (comm.size + 1) // 2, np.float32)
    return {
        'mean of gradients': (model.p0.grad, total),
        'mean of short gradients': (model.p1.grad, total[:3]),
        'derivative of allreduce': (x.grad, weights),
    }


TESTS: tuple[Callable[[Communicator], Results], ...] = (messages, collectives, gradients)


def problems(comm: Communicator) -> list[str]:
    """Return what went wrong on some rank; the same list on all ranks. Collective."""
    found = []
    for test in TESTS:
        everyone = comm.allgather_obj(_own_problems(comm, test))
        found += [f'rank {rank}: {text}' for rank, own in enumerate(everyone) for text in own]
    return found


def _own_problems(comm: Communicator, test: Callable[[Communicator], Results]) -> list[str]:
    try:
        results = test(comm)
    except Exception as error:  # whatever it is, it is what the user must know
        return [f'{type(error).__name__}: {error}']
    return [f'{call} gave wrong values' for call, pair in results.items() if not _equal(*pair)]


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(_equal, found, expected))
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return bool(found == expected)
