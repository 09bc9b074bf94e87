"""Reading one set: nothing is handed out before all that is needed of it is known to be whole."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from mnx.errors import DataError
from mnx.training.checkpoints import archive
from mnx.training.checkpoints.folder import part_name
from mnx.training.checkpoints.manifest import Manifest
from mnx.training.snapshot import State

# What reading an archive raises that has changed since it was verified. RuntimeError: flags of
# other kinds of archives.
_OF_DAMAGED_BYTES = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _everything(key: str) -> bool:
    return True


class SavedSet:
    """One finished set, as one rank sees it.

    Parameters
    ----------
    path : Path
    manifest : Manifest
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._verified: set[str] = set()

    def state_of(self, rank: int, wanted: Callable[[str], bool] = _everything) -> State:
        """Return what a rank had, or the wanted part of it.

        Raises
        ------
        DataError
            A file is missing, cut short or damaged, whether its values are wanted or not.
        """
        state, elsewhere = self._read(part_name(rank), wanted)
        for name, keys in elsewhere.items():
            theirs = {key for key in keys if wanted(key)}
            state |= self._read(name, theirs.__contains__)[0]
        return state

    def _read(self, name: str, wanted: Callable[[str], bool]) -> tuple[State, dict[str, list[str]]]:
        if name not in self._verified:
            archive.verify(self.path / name, self.manifest.files[name])
            self._verified.add(name)
        try:
            return archive.read(self.path / name, wanted)
        except _OF_DAMAGED_BYTES as error:
            raise DataError(f'{name} cannot be read ({error})') from None
