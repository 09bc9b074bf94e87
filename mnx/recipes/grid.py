"""How ranks share the work: rows share a model, columns share the data.

::

    --grid 2x3           one model of 3 parts
    half of each batch   rank 0  rank 1  rank 2
    the other half       rank 3  rank 4  rank 5

One row is ``--modelpar``, one column is ``--datapar``, one rank is a plain training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from mnx.communicators import Communicator, create_communicator
from mnx.errors import ArgumentError
from mnx.functions.replicated import part_bounds

T = TypeVar('T', bound=Sequence[Any])


@dataclass(frozen=True)
class Grid:
    """A rank's place.

    Attributes
    ----------
    world : Communicator
        All ranks.
    row : Communicator
        Those that share a model with this one, and see the same samples.
    column : Communicator
        Those that hold the same part of a model, and see other samples.
    """

    world: Communicator
    row: Communicator
    column: Communicator

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and of columns."""
        return self.column.size, self.row.size

    def share_of(self, samples: T) -> T:
        """Return this row's part of samples."""
        start, end = part_bounds(len(samples), self.column.rank, self.column.size)
        return samples[start:end]  # type: ignore[return-value]


@contextmanager
def arrange(world: Communicator, rows: int, columns: int) -> Iterator[Grid]:
    """Arrange all ranks in a grid. Collective."""
    assert rows * columns == world.size
    made: list[Communicator] = []

    def part(size: int, color: int) -> Communicator:
        if size == world.size > 1:
            return world
        made.append(create_communicator('local') if size == 1 else _split(world, color))
        return made[-1]

    try:
        yield Grid(world, part(columns, world.rank // columns), part(rows, world.rank % columns))
    finally:
        for comm in made:
            comm.finalize()


def _split(world: Communicator, color: int) -> Communicator:
    comm = world.split(color, world.rank)
    assert comm is not None
    return comm


def choose(size: int, *, datapar: bool, modelpar: bool, grid: str | None) -> tuple[int, int]:
    """Return rows and columns for `size` ranks.

    Raises
    ------
    ArgumentError
        Several ranks and nothing said about them; both ways and no grid; a grid of another size.

    >>> choose(4, datapar=False, modelpar=True, grid=None)
    (1, 4)
    >>> choose(6, datapar=True, modelpar=True, grid='2x3')
    (2, 3)
    """
    if datapar and modelpar:
        return _both(size, grid)
    if grid is not None:
        raise ArgumentError(
            f'train: --grid {grid} is for --datapar and --modelpar together. Give both, or no grid.'
        )
    if size > 1 and not datapar and not modelpar:
        raise ArgumentError(
            f'train: {size} processes were started, expected 1 without --datapar or --modelpar. '
            'Add one of them, or leave out the launcher.'
        )
    return (size, 1) if datapar else (1, size)


def _both(size: int, grid: str | None) -> tuple[int, int]:
    if grid is None:
        raise ArgumentError(
            'train: --datapar and --modelpar together need --grid DxM: the batch in D parts, '
            f'the model in M, D times M the number of processes, which is {size}.'
        )
    rows, columns = parse(grid)
    if rows * columns != size:
        raise ArgumentError(
            f'train: --grid {grid} is for {rows * columns} processes, but {size} were started.'
        )
    return rows, columns


def parse(grid: str) -> tuple[int, int]:
    """Return D and M of 'DxM'."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', grid)
    if match is None:
        raise ArgumentError(f'train: --grid is two numbers such as 2x3, but got {grid!r}.')
    return int(match[1]), int(match[2])
