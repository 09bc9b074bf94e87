"""Differentiable collectives: all ranks call them, in forward and so in backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import chainer
import chainer.functions as F

from mnx.arrays import is_array
from mnx.errors import ArgumentError
from mnx.functions import linear
from mnx.functions.connect import token_after
from mnx.functions.node import EVERY_RANK, Communication, Input, Route, Variable
from mnx.functions.reductions import NONLINEAR

if TYPE_CHECKING:
    from mnx.communicators import Communicator


def allreduce(comm: Communicator, x: Input, op: str = 'sum') -> Variable:
    """Reduce variables of equal shape and dtype over all ranks; the result on every rank.

    Collective: all ranks call it, and all call backward.

    Adjoint: itself, for 'sum' and 'mean'. For the others the sum over ranks of the gradients goes
    to the rank with the largest (smallest) value, in equal shares to those that tie; for 'prod'
    it is multiplied by the product of the other ranks' values, zeros or not.

    Parameters
    ----------
    comm : Communicator
    x : Variable or array, any shape
    op : {'sum', 'mean', 'max', 'min', 'prod'}

    Returns
    -------
    Variable
        Shape and dtype of `x`, bitwise equal on all ranks.

    Raises
    ------
    MismatchError
        A rank's shape, dtype or `op` differs (on all ranks).

    Notes
    -----
    Moves as much as `Communicator.allreduce`, in backward as much again; the backward pass of
    'max' and 'min' thrice as much, that of 'prod' gathers all ranks' values.
    """
    return _reduction(comm, op, linear.AllReduce).run((x,))[0]


def reduce(comm: Communicator, x: Input, root: SupportsIndex = 0, op: str = 'sum') -> Variable:
    """Reduce variables of equal shape and dtype over all ranks, onto the root.

    Collective: all ranks call it, and all call backward. Adjoint: `bcast`, for 'sum'; the other
    operations as in `allreduce`.

    Returns
    -------
    Variable
        The reduction on the root; elsewhere a variable of length zero to call backward on.
    """
    return _reduction(comm, op, linear.Reduce, root).run((x,))[0]


def reduce_scatter(comm: Communicator, xs: Input | Sequence[Input]) -> Variable:
    """Add up the r-th variables of all ranks onto rank r.

    Collective: all ranks call it, and all call backward. Adjoint: `allgather`.

    Parameters
    ----------
    comm : Communicator
    xs : sequence of `size` variables, or one variable whose first axis has length `size`
        Shapes and dtypes may differ within the sequence, not between ranks.

    Returns
    -------
    Variable
        On rank r the sum of all ranks' ``xs[r]``.
    """
    return linear.ReduceScatter(comm).run(_row(xs))[0]


def bcast(comm: Communicator, x: Input | None, root: SupportsIndex = 0) -> Variable:
    """Send the root's variable to all ranks.

    Collective: all ranks call it, and all call backward. Adjoint: `reduce`.

    Parameters
    ----------
    comm : Communicator
    x : Variable or array
        Off the root None, or any variable: its value is ignored, its gradient is zero.
    root : int

    Returns
    -------
    Variable
        On every rank.
    """
    xs, token = ((x,), None) if comm.rank == root else ((), token_after([x]))
    return linear.Bcast(comm, Route(root=root)).run(xs, token)[0]


def gather(
    comm: Communicator, x: Input, root: SupportsIndex = 0
) -> tuple[Variable, ...] | Variable:
    """Collect every rank's variable on the root; shapes and dtypes may differ.

    Collective: all ranks call it, and all call backward. Adjoint: `scatter`.

    Returns
    -------
    tuple of `size` Variable, or Variable
        In rank order on the root; elsewhere one variable of length zero to call backward on.
    """
    *ys, token = linear.Gather(comm, Route(root=root)).run((x,))
    return tuple(ys) or token


def scatter(
    comm: Communicator, xs: Input | Sequence[Input] | None, root: SupportsIndex = 0
) -> Variable:
    """Give the r-th of the root's variables to rank r; shapes and dtypes may differ.

    Collective: all ranks call it, and all call backward. Adjoint: `gather`.

    Parameters
    ----------
    comm : Communicator
    xs : sequence of `size` variables, or one variable whose first axis has length `size`
        Off the root None, or any variables: their values are ignored, their gradients are zero.
    root : int

    Returns
    -------
    Variable
        On every rank.
    """
    at_root = comm.rank == root
    token = None if at_root else token_after(xs if isinstance(xs, (list, tuple)) else [xs])
    return linear.Scatter(comm, Route(root=root)).run(_row(xs) if at_root else (), token)[0]


def allgather(comm: Communicator, x: Input) -> tuple[Variable, ...]:
    """Collect every rank's variable on every rank; shapes and dtypes may differ.

    Collective: all ranks call it, and all call backward. Adjoint: `reduce_scatter`, so the
    gradients of all ranks' losses add up.

    Returns
    -------
    tuple of `size` Variable, in rank order
    """
    return linear.AllGather(comm).run((x,))[:-1]


def alltoall(comm: Communicator, xs: Input | Sequence[Input]) -> tuple[Variable, ...]:
    """Give the r-th of this rank's variables to rank r; shapes and dtypes may differ.

    Collective: all ranks call it, and all call backward. Adjoint: itself.

    Parameters
    ----------
    comm : Communicator
    xs : sequence of `size` variables, or one variable whose first axis has length `size`

    Returns
    -------
    tuple of `size` Variable; the s-th came from rank s
    """
    return linear.AllToAll(comm).run(_row(xs))[:-1]


def sync_grad(x: Input, comm: Communicator, op: str = 'mean') -> Variable:
    """Return `x` as it is; in backward its gradient is the mean (or the sum) over ranks.

    Collective in backward only: all ranks call backward, with gradients of one shape and dtype.
    For a value that is the same on all ranks and used by each in its own way.

    Parameters
    ----------
    x : Variable or array
    comm : Communicator
    op : {'mean', 'sum'}
    """
    if op not in ('mean', 'sum'):
        with comm.together('sync_grad'):
            raise ArgumentError(f"sync_grad: op is 'mean' or 'sum', but got {op!r}.")
    return linear.SyncGrad(comm, Route(op=op)).run((x,))[0]


def _reduction(
    comm: Communicator, op: str, plain: type[Communication], root: Any = EVERY_RANK
) -> Communication:
    return NONLINEAR.get(str(op), plain)(comm, Route(op=op, root=root))


def _row(xs: Any) -> Iterator[Input]:
    """Yield one variable for each rank; lazily, so that its errors reach the other ranks."""
    if xs is None:
        raise ArgumentError('needs one variable per rank but got None.')
    if isinstance(xs, chainer.Variable) or is_array(xs):
        xs = F.separate(xs) if xs.ndim and len(xs) else ()
    yield from xs
