"""Labelled images in files: the idx files of MNIST, and npz files. Checked before they are used."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnx.datasets.checksums import SHA256, STEMS, sha256
from mnx.datasets.idx import dump_idx, read_idx
from mnx.errors import DataError, MissingDataError

TITLES = {'mnist': 'MNIST', 'fashion-mnist': 'Fashion-MNIST', 'digits': 'Digits'}


@dataclass(frozen=True)
class RawImages:
    """Images as they are stored: uint8 (n, height, width), labels uint8 (n,).

    Attributes
    ----------
    arrays : tuple of four arrays
        Training images, training labels, test images, test labels.
    origin : str
        Where they were found.
    white : int
        The largest value of a pixel.
    """

    arrays: tuple[NDArray[np.uint8], ...]
    origin: str
    white: int = 255


def read_folder(folder: Path) -> RawImages | None:
    """Return the images in the files of `folder`, or None if it holds no file of a known name."""
    for reader in (_read_idx_files, _read_single_npz, _read_npz_pair):
        arrays = reader(folder)
        if arrays is not None:
            return RawImages(_checked(arrays, folder), str(folder))
    return None


def _read_idx_files(folder: Path) -> tuple[NDArray[Any], ...] | None:
    paths = {stem: _first_existing(folder, stem) for stem in STEMS}
    if not any(paths.values()):
        return None
    missing = [stem for stem, path in paths.items() if path is None]
    if missing:
        raise MissingDataError(
            f'load_images: {folder} holds only some of the idx files, missing {missing}. '
            'Put them there, or download them.'
        )
    return tuple(read_idx(path) for path in paths.values() if path)


def _first_existing(folder: Path, stem: str) -> Path | None:
    # Some unpackers write a dot where the original name has a dash: train-images.idx3-ubyte.
    dotted = stem.replace('-idx', '.idx')
    names = (stem, f'{stem}.gz', dotted, f'{dotted}.gz')
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_single_npz(folder: Path) -> tuple[NDArray[Any], ...] | None:
    path = next(
        (folder / f for f in ('mnist.npz', 'fashion-mnist.npz') if (folder / f).is_file()), None
    )
    if path is None:
        return None
    return _read_npz(path, ('x_train', 'y_train', 'x_test', 'y_test'))


def _read_npz_pair(folder: Path) -> tuple[NDArray[Any], ...] | None:
    train, test = folder / 'train.npz', folder / 'test.npz'
    if not (train.is_file() and test.is_file()):
        return None
    return (*_read_npz(train, ('x', 'y')), *_read_npz(test, ('x', 'y')))


def _read_npz(path: Path, keys: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return tuple(file[key] for key in keys)
    except KeyError:
        raise DataError(f'load_images: {path} lacks some of the arrays {keys}.') from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f'load_images: {path} is cut short or damaged ({error}). '
            'Copy or download the file again.'
        ) from None


def _checked(arrays: tuple[NDArray[Any], ...], folder: Path) -> tuple[NDArray[np.uint8], ...]:
    train = _checked_pair(arrays[0], arrays[1], f'training set in {folder}')
    test = _checked_pair(arrays[2], arrays[3], f'test set in {folder}')
    if train[0].shape[1:] != test[0].shape[1:]:
        raise _wrong(f'images of the test set in {folder}', train[0].shape[1:], test[0].shape[1:])
    return (*train, *test)


def _checked_pair(
    images: NDArray[Any], labels: NDArray[Any], what: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if images.dtype != np.uint8 or images.ndim not in (2, 3) or images.size == 0:
        found = f'{images.dtype} {images.shape}'
        raise _wrong(f'images of the {what}', 'uint8 (n, height, width)', found)
    if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
        found = f'{labels.dtype} {labels.shape}'
        raise _wrong(f'labels of the {what}', f'{len(images)} integers', found)
    return _with_rows(images), labels.astype(np.uint8)


def _with_rows(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give flat images, as Chainer caches them, their rows back if they are square."""
    side = round(images[0].size ** 0.5)
    flat_square = images.ndim == 2 and side * side == images.shape[1]
    return images.reshape(-1, side, side) if flat_square else images


def _wrong(what: str, expected: object, actual: object) -> DataError:
    return DataError(
        f'load_images: wrong {what}, expected {expected} but got {actual}. '
        'Copy or download the files again.'
    )


def identified(name: str, found: RawImages) -> str | None:
    """Return which known data set `found` is by its checksums; None for one of the user's own.

    Raises
    ------
    DataError
        It is not the data set called `name`, or it is a known one with a damaged file.
    """
    if name == 'digits':
        return name
    sums = [sha256(dump_idx(array)) for array in found.arrays]
    wrong = {
        known: [stem for stem, own in zip(files, sums, strict=True) if files[stem] != own]
        for known, files in SHA256.items()
    }
    for known in SHA256:
        if not wrong[known] and name in ('auto', known):
            return known
    for known in SHA256:
        if name == known or len(wrong[known]) < len(STEMS):
            raise _wrong_content(name, known, wrong[known], found.origin)
    return None


def _wrong_content(name: str, known: str, wrong: list[str], origin: str) -> DataError:
    if not wrong:
        return DataError(
            f'load_images: the files in {origin} are {TITLES[known]}, but {name!r} was asked for. '
            f'Ask for {known!r}.'
        )
    return DataError(
        f'load_images: {", ".join(wrong)} in {origin}: not the checksums of {TITLES[known]}. '
        "Replace them, or ask for 'auto' to train on images of your own."
    )
