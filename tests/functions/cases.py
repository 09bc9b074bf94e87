"""Every function of mnx.functions, beside what it computes in one process."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chainer
import chainer.functions as F
import numpy as np

from mnx import functions as MF
from mnx.communicators import Communicator

Variable = Any
Row = list[Variable]
Shape = Callable[[int, int], tuple[int, ...]]  # of the i-th input of rank r


@dataclass(frozen=True)
class Case:
    """`parallel(comm, root, xs)` on rank r returns ``serial(everyone's xs, root)[r]``."""

    parallel: Callable[[Communicator, int, Row], Any]
    serial: Callable[[list[Row], int], list[Row]]
    takes_row: bool = False  # one input for each rank, instead of one
    any_shapes: bool = True  # they may differ between ranks

    def inputs(self, size: int, shape: Shape, dtype: Any = 'f8') -> list[list[np.ndarray]]:
        """Return all ranks' inputs, the same on every rank: no two elements are equal."""
        shapes = [
            [shape(rank, i) for i in range(size if self.takes_row else 1)] for rank in range(size)
        ]
        n = sum(int(np.prod(s)) for row in shapes for s in row)
        values = iter(0.5 + np.random.default_rng(size).permutation(n) / n)
        return [
            [np.array([next(values) for _ in range(int(np.prod(s)))], dtype).reshape(s)
             for s in row] for row in shapes
        ]  # fmt: skip


def equal(rank: int, i: int) -> tuple[int, ...]:
    return (2, 3)


def unequal(rank: int, i: int) -> tuple[int, ...]:
    """Also empty ones."""
    return (rank + 1, i + 2 * rank)


def shift(comm: Communicator, root: int, xs: Row) -> Variable:
    """Every rank sends to the next one; whether it sends first, or receives, alternates."""
    (x,) = xs
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    if comm.size == 1:
        return MF.sync_grad(x, comm)
    if comm.rank % 2 == 0:
        return MF.recv(comm, before, MF.send(x, comm, after))
    y = MF.recv(comm, before, x)
    return MF.pseudo_connect(MF.send(x, comm, after), y)[0]


def on_all(op: Callable[[Row], Variable]) -> Callable[[list[Row], int], list[Row]]:
    return lambda X, root: [[op([x for (x,) in X])] for _ in X]


def on_root(op: Callable[[Row], Variable]) -> Callable[[list[Row], int], list[Row]]:
    return lambda X, root: [[op([x for (x,) in X])] if r == root else [] for r in range(len(X))]


OPS: dict[str, Callable[[Row], Variable]] = {
    'sum': lambda xs: functools.reduce(operator.add, xs),
    'mean': lambda xs: functools.reduce(operator.add, xs) / len(xs),
    'max': lambda xs: F.max(F.stack(xs), axis=0),
    'min': lambda xs: F.min(F.stack(xs), axis=0),
    'prod': lambda xs: functools.reduce(operator.mul, xs),
}


def allreduce(comm: Communicator, root: int, xs: Row, *, op: str) -> Variable:
    return MF.allreduce(comm, xs[0], op)


def reduce(comm: Communicator, root: int, xs: Row, *, op: str) -> Variable:
    return MF.reduce(comm, xs[0], root, op)


CASES: dict[str, Case] = {
    **{
        f'allreduce-{op}': Case(
            functools.partial(allreduce, op=op), on_all(serial), any_shapes=False
        )
        for op, serial in OPS.items()
    },
    **{
        f'reduce-{op}': Case(functools.partial(reduce, op=op), on_root(serial), any_shapes=False)
        for op, serial in OPS.items()
    },
    'bcast': Case(
        lambda comm, root, xs: MF.bcast(comm, xs[0], root),
        lambda X, root: [X[root] for _ in X],
    ),
    'gather': Case(
        lambda comm, root, xs: MF.gather(comm, xs[0], root),
        lambda X, root: [[x for (x,) in X] if r == root else [] for r in range(len(X))],
    ),
    'scatter': Case(
        lambda comm, root, xs: MF.scatter(comm, xs, root),
        lambda X, root: [[x] for x in X[root]],
        takes_row=True,
    ),
    'allgather': Case(
        lambda comm, root, xs: MF.allgather(comm, xs[0]),
        lambda X, root: [[x for (x,) in X] for _ in X],
    ),
    'alltoall': Case(
        lambda comm, root, xs: MF.alltoall(comm, xs),
        lambda X, root: [[row[r] for row in X] for r in range(len(X))],
        takes_row=True,
    ),
    'reduce_scatter': Case(
        lambda comm, root, xs: MF.reduce_scatter(comm, xs),
        lambda X, root: [[OPS['sum']([row[r] for row in X])] for r in range(len(X))],
        takes_row=True,
        any_shapes=False,
    ),
    'shift': Case(shift, lambda X, root: [X[r - 1] for r in range(len(X))]),
}

LINEAR = [name for name in CASES if not name.endswith(('max', 'min', 'prod'))]
HAS_ROOT = ('bcast', 'gather', 'scatter', 'reduce')


def roots(name: str, comm: Communicator) -> range:
    """Return all roots that make a difference."""
    return range(comm.size if name.startswith(HAS_ROOT) else 1)


def last_root(name: str, comm: Communicator) -> int:
    return roots(name, comm)[-1]


def variables(arrays: list[np.ndarray]) -> Row:
    return [chainer.Variable(x) for x in arrays]


def as_row(ys: Any) -> Row:
    return list(ys) if isinstance(ys, (list, tuple)) else [ys]
