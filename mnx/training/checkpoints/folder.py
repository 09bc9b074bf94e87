"""The sets in a folder, and what this process finds of each."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mnx.errors import DataError
from mnx.training.checkpoints import manifest
from mnx.training.checkpoints.manifest import Manifest
from mnx.training.checkpoints.sharing import PROBE

_NAME = re.compile(r'(\d{6,})_iteration_(\d+)')


@dataclass(frozen=True)
class Found:
    """What one rank finds of a set; it has a manifest, or is unfinished, or has a problem."""

    manifest: Manifest | None = None
    problem: str = ''

    def is_of(self, training: str) -> bool:
        """Tell whether it is of this training; an unfinished one may be of any."""
        return self.manifest is None or self.manifest.training == training


def name_of(number: int, iteration: int) -> str:
    """Return the name of the `number`-th set; names sort in the order of writing.

    >>> name_of(7, 1200)
    '000007_iteration_1200'
    """
    return f'{number:06d}_iteration_{iteration}'


def number_of(name: str) -> int:
    """Return as the how manieth set it was written.

    >>> number_of('000007_iteration_1200')
    7
    """
    return int(name.partition('_')[0])


def part_name(rank: int) -> str:
    """Return the name of a rank's file."""
    return f'rank_{rank}.npz'


def names_in(folder: Path) -> list[str]:
    """Return the names of all sets, finished or not, in the order of writing."""
    if not folder.is_dir():
        return []
    found = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=number_of)


def is_finished(path: Path) -> bool:
    """Tell whether a set has a manifest."""
    return (path / manifest.NAME).exists()


def look_at(path: Path) -> Found:
    """Return what is found of a set, less what its files hold."""
    try:
        return Found(manifest.read(path))
    except FileNotFoundError:
        return Found()
    except (DataError, OSError) as error:
        return Found(problem=str(error))


def remove(path: Path) -> None:
    """Remove a set: first what makes it one."""
    (path / manifest.NAME).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed has left of `sharing.folder_owners`."""
    for path in folder.glob(f'{PROBE}*'):
        path.unlink(missing_ok=True)
