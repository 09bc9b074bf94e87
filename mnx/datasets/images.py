"""Small labelled images to train on: MNIST, Fashion-MNIST, or scikit-learn's digits.

Nothing is ever made up: where no data is found, an error tells how to get some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chainer.dataset
import chainer.datasets
import numpy as np
from numpy.typing import NDArray

from mnx.datasets.checksums import STEMS
from mnx.datasets.download import download as download_files
from mnx.datasets.image_files import TITLES, RawImages, identified, read_folder
from mnx.errors import ArgumentError, MissingDataError

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

IMAGES = ('auto', 'mnist', 'fashion-mnist', 'digits')
DEBIAN_FASHION_MNIST = Path('/usr/share/datasets/fashion-mnist')
_TEST_EVERY = 5  # of the images of each digit: the 5th, 10th, 15th ... is for testing


@dataclass(frozen=True)
class LabelledImages:
    """A training and a test set of images, and where they come from.

    Attributes
    ----------
    train, test : TupleDataset or None
        Pairs of an image (n_pixels,) float32 in [0, 1] and a label, int32. None on the ranks
        that have not read the data.
    description : str
        One line that says what this is.
    n_pixels, n_classes : int
    """

    train: chainer.datasets.TupleDataset | None
    test: chainer.datasets.TupleDataset | None
    description: str
    n_pixels: int
    n_classes: int


def load_images(
    name: str = 'auto',
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
    comm: CommunicatorBase | None = None,
    root: int = 0,
) -> LabelledImages:
    """Return labelled images of `name`.

    Collective if `comm` is given: the root reads, and all ranks get the description; the others'
    `train` and `test` are None, as `scatter_dataset` expects them. If reading fails, all ranks
    raise.

    Parameters
    ----------
    name : {'auto', 'mnist', 'fashion-mnist', 'digits'}
        'auto' takes the first of: `data_dir` (if given, it must hold data), MNIST in Chainer's
        cache, Fashion-MNIST of Debian's package ``dataset-fashion-mnist``, the 1,797 real
        handwritten digits (8x8) inside scikit-learn.
    data_dir : path, optional
        A folder with the four idx files (packed with gzip or not), with an npz file of
        ``x_train, y_train, x_test, y_test``, or with ``train.npz`` and ``test.npz`` of ``x, y``.
    download : bool
        Fetch MNIST ('auto', 'mnist') or Fashion-MNIST from a mirror, if it is not there, into
        `data_dir` or Chainer's cache.
    comm : CommunicatorBase, optional
    root : int

    Returns
    -------
    LabelledImages

    Raises
    ------
    MissingDataError
        There is no data; tells how to get some.
    DataError
        A file is damaged, or is not what `name` says.

    Notes
    -----
    Of the images of each digit, as scikit-learn orders them, every fifth is for testing (355 in
    all), the others for training (1,442).
    """
    if comm is None:
        return _labelled(*find_images(name, data_dir, download=download))
    mine = None
    with comm.together('load_images'):
        if comm.rank == root:
            mine = _labelled(*find_images(name, data_dir, download=download))
    facts = comm.bcast_obj(mine and (mine.description, mine.n_pixels, mine.n_classes), root=root)
    return mine or LabelledImages(None, None, *facts)


def find_images(
    name: str = 'auto', data_dir: str | Path | None = None, *, download: bool = False
) -> tuple[str | None, RawImages]:
    """Return which data set was found (None if it is not a known one) and its content."""
    if name not in IMAGES:
        raise ArgumentError(
            f'load_images: unknown name, expected one of {", ".join(IMAGES)} but got {name!r}.'
        )
    folder = None if data_dir is None else Path(data_dir)
    if download and name != 'digits':
        _download_missing('mnist' if name == 'auto' else name, folder)
    if folder is not None:
        return _from_folder(name, folder)
    for known in IMAGES[1:] if name == 'auto' else (name,):
        for source in _SOURCES[known]:
            found = source()
            if found is not None:
                return identified(known, found), found
    raise _nothing_found(name)


def _from_folder(name: str, folder: Path) -> tuple[str | None, RawImages]:
    if name == 'digits':
        raise ArgumentError(
            'load_images: the digits come with scikit-learn, expected no folder '
            f'but got {str(folder)!r}. Leave out the folder, or the name.'
        )
    if not folder.is_dir():
        raise MissingDataError(
            f'load_images: there is no folder {folder}. Name the folder that holds the idx or '
            'npz files, or none.'
        )
    found = read_folder(folder)
    if found is None:
        raise MissingDataError(
            f'load_images: no images in the folder {folder}, expected the files {", ".join(STEMS)} '
            '(or the same with .gz), mnist.npz, or train.npz and test.npz. '
            'Put them there, or download them.'
        )
    return identified(name, found), found


def _download_missing(name: str, folder: Path | None) -> None:
    target = folder or _chainer_cache(name)
    try:
        complete = _read_if_there(target) is not None
    except MissingDataError:  # some of the files
        complete = False
    if not complete:
        download_files(name, target)


def _nothing_found(name: str) -> MissingDataError:
    ways = {
        'mnist': 'Add --download, or name a folder that holds it with --data-dir.',
        'fashion-mnist': 'On Debian: apt install dataset-fashion-mnist. Elsewhere: add --download, '
        'or name a folder that holds it with --data-dir.',
        'digits': 'They come with scikit-learn: pip install scikit-learn.',
    }
    chosen = ways if name == 'auto' else {name: ways[name]}
    lines = [f'  {TITLES[key]}: {way}' for key, way in chosen.items()]
    return MissingDataError(
        f'load_images: found no data for {name!r}. Ways to get some:\n' + '\n'.join(lines)
    )


def _labelled(known: str | None, raw: RawImages) -> LabelledImages:
    train_images, train_labels, test_images, test_labels = raw.arrays
    n_pixels = train_images[0].size
    title = TITLES[known] if known else 'Images of unknown origin'
    shape = 'x'.join(map(str, train_images.shape[1:]))
    return LabelledImages(
        train=_pairs(train_images, train_labels, raw.white),
        test=_pairs(test_images, test_labels, raw.white),
        description=f'{title} from {raw.origin}: {len(train_images)} images to train, '
        f'{len(test_images)} to test, {shape} pixels',
        n_pixels=n_pixels,
        n_classes=int(max(train_labels.max(), test_labels.max())) + 1,
    )


def _pairs(images: NDArray[np.uint8], labels: NDArray[np.uint8], white: int) -> Any:
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels *= np.float32(1 / white)
    return chainer.datasets.TupleDataset(pixels, labels.astype(np.int32))


# Sources: each returns images, or None where there are none.


def _chainer_cache(name: str) -> Path:
    folder = f'pfnet/chainer/{name}'
    return Path(chainer.dataset.get_dataset_directory(folder, create_directory=False))


def _cached(name: str) -> Callable[[], RawImages | None]:
    return lambda: _read_if_there(_chainer_cache(name))


def _debian_fashion_mnist() -> RawImages | None:
    return _read_if_there(DEBIAN_FASHION_MNIST)


def _read_if_there(folder: Path) -> RawImages | None:
    return read_folder(folder) if folder.is_dir() else None


def _digits() -> RawImages | None:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return None
    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    test = np.zeros(len(images), bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    arrays = (images[~test], labels[~test], images[test], labels[test])
    return RawImages(arrays, 'scikit-learn (real handwriting, not MNIST)', white=16)


_SOURCES: dict[str, tuple[Callable[[], RawImages | None], ...]] = {
    'mnist': (_cached('mnist'),),
    'fashion-mnist': (_debian_fashion_mnist, _cached('fashion-mnist')),
    'digits': (_digits,),
}
