"""What makes files a set: read as it was written, or refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mnx.errors import DataError
from mnx.training.checkpoints import manifest
from mnx.training.checkpoints.archive import FileFacts
from mnx.training.checkpoints.manifest import Manifest
from tests.launching import alone

pytestmark = alone

KNOWN = Manifest(
    iteration=7,
    training='größer',
    size=2,
    differs=['mnx/random', 'order'],
    files={'rank_0.npz': FileFacts(12, 'ab'), 'rank_1.npz': FileFacts(0, 'cd')},
)


def written(folder: Path) -> Path:
    manifest.write(folder, KNOWN)
    return folder / manifest.NAME


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = manifest.read(tmp_path)
    assert found == KNOWN
    assert found.digest == KNOWN.digest
    assert found.files['rank_0.npz'].n_bytes == 12
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('mask', [0x04, 0x80])
def test_every_byte_counts(tmp_path: Path, mask: int) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 2):
        data = bytearray(whole)
        data[place] ^= mask
        path.write_bytes(data)
        with pytest.raises(DataError):
            manifest.read(tmp_path)


def test_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 9):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match='cut short'):
            manifest.read(tmp_path)


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'iteration': 8}, 'its checksum is another'),
        ({'more': 1}, 'its checksum is another'),
        ({'sha256': None}, 'its checksum is another'),
        ({'format': 'of others'}, 'damaged, or none of mnx'),
        ({'version': 2}, 'it has format 2, and this mnx reads 1: use the mnx that wrote it'),
        ({'version': None}, 'it has format None'),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_what_is_wrong(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    changed(written(tmp_path), **values)
    with pytest.raises(DataError, match=reason):
        manifest.read(tmp_path)


@pytest.mark.parametrize('text', ['[]', '1', 'null', '{}'])
def test_other_json(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(DataError, match='none of mnx'):
        manifest.read(tmp_path)


def test_brackets_without_end(tmp_path: Path) -> None:
    """They exhaust Python's stack."""
    (tmp_path / manifest.NAME).write_text('[' * 100_000)
    with pytest.raises(DataError, match='cut short or damaged'):
        manifest.read(tmp_path)


def test_an_unfinished_set_has_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        manifest.read(tmp_path)


@pytest.mark.parametrize('name', list(asdict(KNOWN)))
def test_sets_that_differ_anywhere_have_other_digests(name: str) -> None:
    other = {'iteration': 8, 'training': 'b', 'size': 3, 'differs': ['order'], 'files': {}}
    assert replace(KNOWN, **{name: other[name]}).digest != KNOWN.digest


def test_the_order_of_the_files_does_not_count() -> None:
    files = dict(reversed(KNOWN.files.items()))
    assert replace(KNOWN, files=files).digest == KNOWN.digest
