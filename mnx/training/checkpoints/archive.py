"""One rank's file of a set: an npz file without pickles, so that reading it runs no code."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnx.errors import DataError, DtypeError
from mnx.training.snapshot import State
from mnx.training.whole_file import whole_file

_FACTS = 'mnx/facts'
_CHUNK = 1 << 20
_write_array: Callable[..., None] = np.lib.format.write_array


class FileFacts(NamedTuple):
    """What a manifest knows of a file."""

    n_bytes: int
    sha256: str


class HashedFile:
    """A file that cannot be rewound, so that all that is written can be hashed on its way.

    The checksum is of what was meant to be written, not of what a disk made of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._n_bytes = 0

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._digest.update(data)
        self._n_bytes += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def facts(self) -> FileFacts:
        """Return size and checksum of what was written."""
        return FileFacts(self._n_bytes, self._digest.hexdigest())


def write(path: Path, state: State, elsewhere: dict[str, list[str]]) -> FileFacts:
    """Write `state`, and in which other files of the set the rank's other values are.

    Raises
    ------
    DtypeError
        A value is a Python object, which only pickle could store.
    OSError
    """
    arrays, facts = _encode(state)
    arrays[_FACTS] = np.asarray(json.dumps({**facts, 'elsewhere': elsewhere}))
    with whole_file(path) as file:
        hashed = HashedFile(file)
        with zipfile.ZipFile(hashed, 'w') as archive:  # type: ignore[call-overload]
            for key, value in arrays.items():
                with archive.open(f'{key}.npy', 'w', force_zip64=True) as entry:
                    _write_array(entry, value, allow_pickle=False)
    return hashed.facts()


def verify(path: Path, facts: FileFacts) -> None:
    """Raise `DataError` unless the file is what was written."""
    try:
        n_bytes = path.stat().st_size
        if n_bytes != facts.n_bytes:
            raise DataError(f'{path.name} has {n_bytes} bytes, not {facts.n_bytes}')
        if _sha256(path) != facts.sha256:
            raise DataError(f'{path.name} is damaged (its checksum is another)')
    except FileNotFoundError:
        raise DataError(f'{path.name} is missing') from None
    except OSError as error:
        raise DataError(f'{path.name} cannot be read ({error})') from None


def read(path: Path, wanted: Callable[[str], bool]) -> tuple[State, dict[str, list[str]]]:
    """Return the wanted values, and in which other files the rank's other values are."""
    with np.load(path, allow_pickle=False) as file:
        facts = json.loads(str(file[_FACTS]))
        state = {key: file[key] for key in file.files if key != _FACTS and wanted(key)}
    state.update({key: np.asarray(None) for key in facts['none'] if wanted(key)})
    for key, name in facts['dtypes'].items():
        if key in state:
            state[key] = state[key].view(_dtype(name))
    return state, facts['elsewhere']


def _encode(state: State) -> tuple[State, dict[str, Any]]:
    """Return arrays that need no pickle, and what is needed to make `state` of them."""
    nones = [key for key, value in state.items() if value.dtype.hasobject and value[()] is None]
    arrays = {key: value for key, value in state.items() if key not in nones}
    dtypes = {}
    for key, value in arrays.items():
        if value.dtype.hasobject:
            raise DtypeError(
                f'checkpoint: {key} is a Python object, expected numbers, text, arrays or None but '
                f'got {type(value.flat[0]).__name__}. Let serialize() give an array or JSON.'
            )
        if value.dtype.isbuiltin == 2:  # bfloat16 and its kin, which a file would not name
            dtypes[key] = value.dtype.name
            arrays[key] = _as_bytes(value)
    return arrays, {'none': nones, 'dtypes': dtypes}


def _as_bytes(value: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(value).reshape(value.shape).view(f'u{value.dtype.itemsize}')


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
