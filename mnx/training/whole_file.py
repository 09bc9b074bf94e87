"""Files that are there as a whole, or not at all.

    open a file under another name  ->  write  ->  fsync  ->  rename  ->  fsync the folder

A process that is killed on the way leaves the other name behind, and nothing under the right one.
A full disk shows before the rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears as `path` when the block ends, and lasts.

    Raises
    ------
    OSError
        It cannot be written; what `path` was before stays.
    """
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with open(unfinished, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
