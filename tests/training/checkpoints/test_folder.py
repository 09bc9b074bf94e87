"""Which sets are in a folder, and what is found of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnx.training.checkpoints import folder, manifest
from mnx.training.checkpoints.folder import Found
from mnx.training.checkpoints.manifest import Manifest
from mnx.training.checkpoints.sharing import PROBE
from tests.launching import alone

pytestmark = alone

KNOWN = Manifest(7, 'mine', 1, [], {})


def a_set(home: Path, name: str = '000001_iteration_7') -> Path:
    path = home / name
    path.mkdir()
    (path / 'rank_0.npz').write_bytes(b'values')
    manifest.write(path, KNOWN)
    return path


@pytest.mark.parametrize('number', [1, 999_999, 1_000_000])
def test_a_name_tells_its_number(number: int) -> None:
    assert folder.number_of(folder.name_of(number, 10 * number)) == number


def test_sets_in_the_order_of_writing(tmp_path: Path) -> None:
    """Not of iterations, which start again after a damage; also past a million."""
    pairs = [(999_999, 5), (2, 90), (10, 3), (1_000_000, 4), (9, 100)]
    for number, iteration in pairs:
        (tmp_path / folder.name_of(number, iteration)).mkdir()
    assert folder.names_in(tmp_path) == [folder.name_of(*pair) for pair in sorted(pairs)]


@pytest.mark.parametrize(
    'name',
    ['00001_iteration_5', '000001_iteration_', '000001_iteration_5.old', 'a000001_iteration_5',
     '000001_epoch_5', '.000001_iteration_5', 'log'],
)  # fmt: skip
def test_other_names_are_no_sets(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert folder.names_in(tmp_path) == []


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert folder.names_in(tmp_path / 'none') == []
    (tmp_path / 'file').touch()
    assert folder.names_in(tmp_path / 'file') == []


class TestLookAt:
    def test_a_finished_set(self, tmp_path: Path) -> None:
        path = a_set(tmp_path)
        assert folder.look_at(path) == Found(KNOWN)
        assert folder.is_finished(path)

    def test_an_unfinished_one(self, tmp_path: Path) -> None:
        path = a_set(tmp_path)
        (path / manifest.NAME).unlink()
        assert folder.look_at(path) == Found()
        assert not folder.is_finished(path)

    def test_a_damaged_one(self, tmp_path: Path) -> None:
        path = a_set(tmp_path)
        (path / manifest.NAME).write_text('{')
        assert folder.look_at(path) == Found(problem='manifest.json is cut short or damaged')

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / manifest.NAME).mkdir()
        found = folder.look_at(tmp_path)
        assert found.manifest is None
        assert 'Is a directory' in found.problem


@pytest.mark.parametrize(
    ('found', 'expected'),
    [
        (Found(KNOWN), True),
        (Found(Manifest(7, 'another', 1, [], {})), False),
        (Found(), True),
        (Found(problem='damaged'), True),
    ],
    ids=['mine', 'of another', 'unfinished', 'damaged'],
)
def test_of_which_training(found: Found, expected: bool) -> None:
    assert found.is_of('mine') == expected


class TestRemove:
    def test_all_of_it(self, tmp_path: Path) -> None:
        other = a_set(tmp_path, '000002_iteration_8')
        folder.remove(a_set(tmp_path))
        assert list(tmp_path.iterdir()) == [other]

    @pytest.mark.parametrize('name', ['unfinished', 'none'])
    def test_what_is_no_set(self, tmp_path: Path, name: str) -> None:
        (tmp_path / 'unfinished').mkdir()
        folder.remove(tmp_path / name)
        assert not (tmp_path / name).exists()

    def test_what_cannot_be_removed_is_no_set_afterwards(self, tmp_path: Path) -> None:
        """As a link cannot, the way a folder is."""
        path = a_set(tmp_path, 'elsewhere')
        link = tmp_path / '000001_iteration_7'
        link.symlink_to(path)
        folder.remove(link)
        assert folder.look_at(link) == Found()
        assert [each.name for each in path.iterdir()] == ['rank_0.npz']


def test_sweep_takes_probes_alone(tmp_path: Path) -> None:
    path = a_set(tmp_path)
    for name in (f'{PROBE}abc-0', f'{PROBE}abc-1'):
        (tmp_path / name).touch()
    folder.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    folder.sweep(tmp_path / 'none')
