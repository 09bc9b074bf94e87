"""Rows share a model, columns share the data."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.recipes.grid import arrange, choose, parse
from tests.recipes.running import shapes


def test_rows_and_columns(comm: Communicator) -> None:
    for rows, columns in shapes(comm.size):
        with arrange(comm, rows, columns) as grid:
            assert grid.shape == (rows, columns)
            row, column = divmod(comm.rank, columns)
            own = grid.row.allgather_obj(comm.rank)
            assert own == [row * columns + i for i in range(columns)]
            assert grid.column.allgather_obj(comm.rank) == [
                i * columns + column for i in range(rows)
            ]


def test_shares_cover_all_samples_once(comm: Communicator) -> None:
    samples = list(range(2 * comm.size + 1))
    for rows, columns in shapes(comm.size):
        with arrange(comm, rows, columns) as grid:
            mine = grid.share_of(samples)
            assert list(grid.share_of(np.array(samples))) == mine
            assert list(chain(*grid.column.allgather_obj(mine))) == samples
            assert grid.row.allgather_obj(mine) == [mine] * columns


@pytest.mark.parametrize(
    ('size', 'datapar', 'modelpar', 'grid', 'shape'),
    [
        (1, False, False, None, (1, 1)),
        (1, True, False, None, (1, 1)),
        (4, True, False, None, (4, 1)),
        (4, False, True, None, (1, 4)),
        (6, True, True, '2x3', (2, 3)),
        (1, True, True, '1x1', (1, 1)),
    ],
)
def test_flags(size, datapar, modelpar, grid, shape) -> None:
    assert choose(size, datapar=datapar, modelpar=modelpar, grid=grid) == shape


@pytest.mark.parametrize(
    ('size', 'datapar', 'modelpar', 'grid', 'text'),
    [
        (2, False, False, None, '2 processes were started, expected 1'),
        (4, True, True, None, 'need --grid DxM'),
        (4, True, True, '2x3', 'is for 6 processes, but 4'),
        (4, True, False, '2x2', 'is for --datapar and --modelpar together'),
        (4, True, True, '2', 'two numbers such as 2x3'),
        (4, True, True, '0x4', 'two numbers such as 2x3'),
        (4, True, True, '2x2x1', 'two numbers such as 2x3'),
    ],
)
def test_wrong_flags(size, datapar, modelpar, grid, text) -> None:
    with pytest.raises(ArgumentError, match=text):
        choose(size, datapar=datapar, modelpar=modelpar, grid=grid)


def test_two_numbers() -> None:
    assert parse('12x3') == (12, 3)
