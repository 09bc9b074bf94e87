"""One set as a rank reads it: whole, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mnx.errors import DataError
from mnx.training.checkpoints import archive
from mnx.training.checkpoints.manifest import Manifest
from mnx.training.checkpoints.saved_set import SavedSet
from tests.launching import alone

pytestmark = alone


@pytest.fixture
def saved(tmp_path: Path) -> SavedSet:
    """Of three ranks: rank 0 holds what is common, 1 what it has in common with 2."""
    contents = [
        ({'W': np.arange(3.0), 'order': np.array([0])}, {}),
        ({'bn': np.array([1.5]), 'order': np.array([1])}, {'rank_0.npz': ['W']}),
        ({'order': np.array([2])}, {'rank_0.npz': ['W'], 'rank_1.npz': ['bn']}),
    ]
    files = {
        f'rank_{rank}.npz': archive.write(tmp_path / f'rank_{rank}.npz', *content)
        for rank, content in enumerate(contents)
    }
    return SavedSet(tmp_path, Manifest(7, 'mine', 3, ['bn', 'order'], files))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ('rank', 'expected'),
    [
        (0, {'W': [0, 1, 2], 'order': [0]}),
        (1, {'W': [0, 1, 2], 'bn': [1.5], 'order': [1]}),
        (2, {'W': [0, 1, 2], 'bn': [1.5], 'order': [2]}),
    ],
    ids='012',
)
def test_what_each_rank_had(saved: SavedSet, rank: int, expected: dict[str, list[float]]) -> None:
    state = saved.state_of(rank)
    assert {key: value.tolist() for key, value in state.items()} == expected


def test_the_wanted_part(saved: SavedSet) -> None:
    assert saved.state_of(2, {'bn', 'none'}.__contains__).keys() == {'bn'}
    assert saved.state_of(2, {'order'}.__contains__)['order'].tolist() == [2]


@pytest.mark.parametrize('name', ['rank_0.npz', 'rank_1.npz', 'rank_2.npz'])
def test_a_damaged_file_is_an_error_though_nothing_of_it_is_wanted(
    saved: SavedSet, name: str
) -> None:
    flip(saved.path / name)
    with pytest.raises(DataError, match=f'{name} is damaged'):
        saved.state_of(2, lambda key: False)


def test_files_that_a_rank_does_not_need_do_not_count(saved: SavedSet) -> None:
    flip(saved.path / 'rank_2.npz')
    assert saved.state_of(1)['order'].tolist() == [1]


def test_a_missing_file(saved: SavedSet) -> None:
    (saved.path / 'rank_1.npz').unlink()
    with pytest.raises(DataError, match=r'rank_1.npz is missing'):
        saved.state_of(2)


@pytest.mark.parametrize('length', [0, 1, 100, -1])
def test_a_file_that_is_cut_once_it_was_found_whole(saved: SavedSet, length: int) -> None:
    """Checksums are compared once. What comes then is the same kind of error."""
    saved.state_of(0)
    path = saved.path / 'rank_0.npz'
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r'rank_0.npz cannot be read'):
        saved.state_of(0)


def test_a_byte_that_changes_once_it_was_found_whole(saved: SavedSet) -> None:
    """Where it matters it is that error, and no other; and never other values."""
    expected = saved.state_of(0)
    path = saved.path / 'rank_0.npz'
    whole, n_errors = path.read_bytes(), 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 9]) + whole[place + 1 :])
        try:
            found = saved.state_of(0)
        except DataError:
            n_errors += 1
        else:
            assert {k: v.tolist() for k, v in found.items()} == {
                k: v.tolist() for k, v in expected.items()
            }
    assert n_errors > len(whole) // 15
