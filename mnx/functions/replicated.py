"""Between values that are whole on every rank and values of which each rank has a part.

For ranks that compute *one* loss together, as tensor-parallel links do. A value is either
*replicated*, the same bits on all ranks, or *split* along an axis::

                    forward                          backward (is the forward of its adjoint)
    spread   whole  ────────────────────►  whole     sum of what the ranks make of it
    total    terms  ──── allreduce ─────►  whole     each term has the gradient of the sum
    split    whole  ── take one's part ─►  part      allgather
    join     part   ──── allgather ─────►  whole     take one's part

The objective is *the* loss, that every rank holds, and not the sum over ranks of `mnx.functions`:
the gradient of a replicated value is replicated, that of a part is its part of the gradient. So
gradients are those of one process, whatever the number of ranks.

What needs no gradient (the data) is not communicated in backward. All ranks must agree on that, as
they do when they run the same program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnx.arrays import Array, module_of
from mnx.errors import ArgumentError
from mnx.functions.node import Communication, Input, Route, Variable, as_variable

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Arrays = tuple[Array, ...]


def part_bounds(length: int, rank: int, size: int) -> tuple[int, int]:
    """Return where `rank`'s part of an axis begins and ends; parts differ by one at most.

    >>> [part_bounds(10, rank, 4) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    return length * rank // size, length * (rank + 1) // size


def take_part(x: Array, axis: int, rank: int, size: int) -> Array:
    """Return `rank`'s part of an array, which is whole along `axis`: a contiguous copy."""
    start, end = part_bounds(x.shape[axis], rank, size)
    index: list[slice] = [slice(None)] * x.ndim
    index[axis] = slice(start, end)
    return x[tuple(index)].copy()


def join_parts(parts: Sequence[Array], axis: int) -> Array:
    """Put the parts of all ranks together along `axis`.

    Raises
    ------
    ArgumentError
        They are not as long as `part_bounds` makes them.
    """
    lengths = [x.shape[axis] for x in parts]
    total, size = sum(lengths), len(parts)
    bounds = [part_bounds(total, rank, size) for rank in range(size)]
    expected = [end - start for start, end in bounds]
    if lengths != expected:
        raise ArgumentError(
            f'join: the parts of {total} along axis {axis} are not as expected, expected '
            f'{expected} but got {lengths}. Split them by mnx.functions.replicated.part_bounds.'
        )
    return module_of(parts[0]).concatenate(parts, axis=axis)


def spread(comm: Communicator, x: Input) -> Variable:
    """Return a replicated value as it is; in backward the sum of all ranks' gradients.

    Goes before what each rank computes in its own way from the whole. Collective in backward
    only, and only if `x` needs a gradient. Adjoint: `total`.
    """
    x = as_variable(x, 'spread')
    return Spread(comm).run((x,))[0] if x.requires_grad else x


def total(comm: Communicator, x: Input) -> Variable:
    """Return the sum of all ranks' terms, replicated; the gradient is that of the sum.

    Collective: all ranks call it; in backward nothing is communicated. Adjoint: `spread`.
    """
    return Total(comm).run((x,))[0]


def split(comm: Communicator, x: Input, axis: int = 1) -> Variable:
    """Return this rank's part of a replicated value, by `part_bounds`.

    Collective in backward only, and only if `x` needs a gradient. Adjoint: `join`.
    """
    x = as_variable(x, 'split')
    if x.requires_grad:
        return Split(comm, Along(axis=axis)).run((x,))[0]
    return as_variable(take_part(x.array, axis, comm.rank, comm.size), 'split')


def join(comm: Communicator, x: Input, axis: int = 1) -> Variable:
    """Return the whole, replicated, of which each rank has its part.

    Collective: all ranks call it; in backward nothing is communicated. Adjoint: `split`.
    """
    return Join(comm, Along(axis=axis)).run((x,))[0]


@dataclass(frozen=True)
class Along(Route):
    """Which axis is split."""

    axis: int = 1


class Spread(Communication):
    """y_r = x, where x is one value."""

    call = 'spread'
    is_collective = False

    def communicate(self, xs: Arrays) -> Arrays:
        return xs


class Total(Communication):
    """y = sum over s of x_s, where y is one value."""

    call = 'total'

    def communicate(self, xs: Arrays) -> Arrays:
        return (self.comm.allreduce(xs[0]),)


class _AlongAxis(Communication):
    """A communication whose route is `Along`."""

    @property
    def axis(self) -> int:
        assert isinstance(self.route, Along)
        return self.route.axis


class Split(_AlongAxis):
    """y_r = the r-th part of x, where x is one value."""

    call = 'split'
    is_collective = False

    def communicate(self, xs: Arrays) -> Arrays:
        return (take_part(xs[0], self.axis, self.comm.rank, self.comm.size),)


class Join(_AlongAxis):
    """y = the x_s one behind the other, where y is one value."""

    call = 'join'

    def communicate(self, xs: Arrays) -> Arrays:
        return (join_parts(self.comm.allgather(xs[0]), self.axis),)


for _one, _other in ((Spread, Total), (Split, Join)):
    _one.adjoint, _other.adjoint = _other, _one
