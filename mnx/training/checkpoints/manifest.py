"""What is written last, and makes files a set: their sizes and checksums.

Its own checksum is in it. A manifest of another format is told apart from a damaged one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnx.errors import DataError
from mnx.training.checkpoints.archive import FileFacts
from mnx.training.whole_file import whole_file

NAME = 'manifest.json'
FORMAT = 'mnx checkpoint'
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What all ranks must know of a set.

    Attributes
    ----------
    iteration : int
    training : str
        The same in all sets of one training, also after it went on; another in every other.
    size : int
        How many ranks wrote it.
    differs : list of str
        Names of the values that are not equal on all ranks, sorted.
    files : dict
        Size and checksum of each file.
    """

    iteration: int
    training: str
    size: int
    differs: list[str]
    files: dict[str, FileFacts]

    @property
    def digest(self) -> str:
        """A checksum, by which ranks find out whether theirs are of the same set."""
        return _digest(asdict(self))


def write(folder: Path, manifest: Manifest) -> None:
    """Make the files of a folder a set."""
    text = {'format': FORMAT, 'version': VERSION, 'sha256': manifest.digest, **asdict(manifest)}
    with whole_file(folder / NAME) as file:
        file.write(json.dumps(text, indent=1).encode())


def read(folder: Path) -> Manifest:
    """Return the manifest of a set.

    Raises
    ------
    DataError
        It is damaged, or of another format.
    OSError
        There is none, or it cannot be read.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
    except (ValueError, RecursionError):
        raise DataError(f'{NAME} is cut short or damaged') from None
    _check_format(content)
    digest = content.pop('sha256', None)
    if digest != _digest(content):
        raise DataError(f'{NAME} is damaged (its checksum is another)')
    files = {name: FileFacts(*facts) for name, facts in content.pop('files').items()}
    return Manifest(**content, files=files)


def _check_format(content: Any) -> None:
    """Take the words about the format out of what was read, or raise."""
    if not isinstance(content, dict) or content.pop('format', None) != FORMAT:
        raise DataError(f'{NAME} is damaged, or none of mnx')
    version = content.pop('version', None)
    if version != VERSION:
        raise DataError(
            f'it has format {version!r}, and this mnx reads {VERSION}: use the mnx that wrote it'
        )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
