import gzip
import os
from pathlib import Path

import chainer.dataset
import chainer.datasets
import numpy as np
import pytest

from mnx.datasets import checksums, images, load_images, scatter_dataset
from mnx.datasets.idx import dump_idx
from mnx.errors import ArgumentError, DataError, MissingDataError

RANDOM = np.random.RandomState(0)
ARRAYS = (
    RANDOM.randint(0, 256, (12, 4, 4)).astype(np.uint8),
    (np.arange(12) % 3).astype(np.uint8),
    RANDOM.randint(0, 256, (5, 4, 4)).astype(np.uint8),
    (np.arange(5) % 3).astype(np.uint8),
)


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    """Hide what this machine happens to have."""
    root = chainer.dataset.get_dataset_root()
    chainer.dataset.set_dataset_root(str(tmp_path / 'chainer'))
    monkeypatch.setattr(images, 'DEBIAN_FASHION_MNIST', tmp_path / 'debian')
    yield
    chainer.dataset.set_dataset_root(root)


@pytest.fixture
def known(monkeypatch):
    """Make the small arrays pass for MNIST."""
    sums = {
        stem: checksums.sha256(dump_idx(array))
        for stem, array in zip(checksums.STEMS, ARRAYS, strict=True)
    }
    monkeypatch.setitem(checksums.SHA256, 'mnist', sums)


def write_idx(folder, pack=bytes, suffix='', arrays=ARRAYS):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in zip(checksums.STEMS, arrays, strict=True):
        (folder / f'{stem}{suffix}').write_bytes(pack(dump_idx(array)))


def write_gz(folder):
    write_idx(folder, gzip.compress, '.gz')


def write_npz(folder):
    folder.mkdir(parents=True, exist_ok=True)
    keys = ('x_train', 'y_train', 'x_test', 'y_test')
    np.savez(folder / 'mnist.npz', **dict(zip(keys, ARRAYS, strict=True)))


def write_chainer_npz(folder):
    """As Chainer caches it: flat images."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in {'train': ARRAYS[:2], 'test': ARRAYS[2:]}.items():
        np.savez_compressed(folder / f'{name}.npz', x=x.reshape(len(x), -1), y=y)


WRITERS = [write_idx, write_gz, write_npz, write_chainer_npz]


def check_pairs(dataset, x, y):
    assert isinstance(dataset, chainer.datasets.TupleDataset)
    pixels, labels = (column[:] for column in dataset._datasets)
    assert (pixels.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(pixels, x.reshape(len(x), -1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(labels, y)


@pytest.mark.parametrize('write', WRITERS)
@pytest.mark.parametrize('name', ['auto', 'mnist'])
def test_all_formats_in_a_folder(tmp_path, write, name, known):
    write(tmp_path / 'data')
    found = load_images(name, tmp_path / 'data')
    check_pairs(found.train, *ARRAYS[:2])
    check_pairs(found.test, *ARRAYS[2:])
    assert (found.n_pixels, found.n_classes) == (16, 3)
    assert found.description == (
        f'MNIST from {tmp_path / "data"}: 12 images to train, 5 to test, 4x4 pixels'
    )


def test_images_of_ones_own_are_not_called_mnist(tmp_path):
    write_idx(tmp_path / 'data')
    assert load_images('auto', tmp_path / 'data').description.startswith('Images of unknown origin')
    with pytest.raises(DataError, match='not the checksums of MNIST'):
        load_images('mnist', tmp_path / 'data')


def test_one_data_set_is_not_taken_for_another(tmp_path, known):
    write_idx(tmp_path / 'data')
    with pytest.raises(DataError, match=r"are MNIST, but 'fashion-mnist' was asked for"):
        load_images('fashion-mnist', tmp_path / 'data')


def test_a_changed_pixel_is_found(tmp_path, known):
    changed = tuple(array.copy() for array in ARRAYS)
    changed[2][0, 0, 0] ^= 1
    write_idx(tmp_path / 'data', arrays=changed)
    for name in ('auto', 'mnist'):
        with pytest.raises(DataError, match=r't10k-images-idx3-ubyte in .*not the checksums'):
            load_images(name, tmp_path / 'data')


@pytest.mark.parametrize('write', [write_gz, write_chainer_npz])
def test_chainers_cache_is_found(tmp_path, write, known):
    write(tmp_path / 'chainer/pfnet/chainer/mnist')
    for name in ('auto', 'mnist'):
        assert load_images(name).description.startswith('MNIST from')


def test_order_of_the_sources(tmp_path, monkeypatch, known):
    pytest.importorskip('sklearn')
    fashion = dict(checksums.SHA256['mnist'])
    other = tuple(array[::-1].copy() for array in ARRAYS)
    for stem, array in zip(checksums.STEMS, other, strict=True):
        fashion[stem] = checksums.sha256(dump_idx(array))
    monkeypatch.setitem(checksums.SHA256, 'fashion-mnist', fashion)

    assert load_images().description.startswith('Digits from scikit-learn')
    write_idx(tmp_path / 'debian', gzip.compress, '.gz', arrays=other)
    assert load_images().description.startswith('Fashion-MNIST from')
    write_chainer_npz(tmp_path / 'chainer/pfnet/chainer/mnist')
    assert load_images().description.startswith('MNIST from')
    write_idx(tmp_path / 'mine', arrays=other)
    assert str(tmp_path / 'mine') in load_images(data_dir=tmp_path / 'mine').description


def test_the_digits():
    pytest.importorskip('sklearn')
    found = load_images('digits')
    assert (len(found.train), len(found.test)) == (1442, 355)
    assert (found.n_pixels, found.n_classes) == (64, 10)
    assert 'not MNIST' in found.description
    image, label = found.train[0]
    assert (image.shape, image.dtype, label.dtype) == ((64,), np.float32, np.int32)
    pixels = np.stack([image for image, _ in found.train])
    assert (pixels.min(), pixels.max()) == (0, 1)
    # every digit is in both sets, about as often
    counts = np.bincount([label for _, label in found.test])
    assert counts.min() >= 34
    assert counts.max() <= 36


def test_the_digits_are_split_without_overlap():
    pytest.importorskip('sklearn')
    found = load_images('digits')
    rows = [image.tobytes() for dataset in (found.train, found.test) for image, _ in dataset]
    assert len(set(rows)) == 1797


@pytest.mark.parametrize('name', ['mnist', 'fashion-mnist'])
def test_without_data_the_error_tells_how_to_get_some(name):
    with pytest.raises(MissingDataError, match='--download') as caught:
        load_images(name)
    assert isinstance(caught.value, FileNotFoundError)


def test_nothing_is_made_up_where_even_the_digits_are_missing(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'sklearn.datasets', None)
    with pytest.raises(MissingDataError, match='pip install scikit-learn'):
        load_images('auto')


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (('imagenet',), ArgumentError, 'expected one of auto, mnist'),
        (('digits', '.'), ArgumentError, 'come with scikit-learn'),
        (('auto', 'no/such/folder'), MissingDataError, 'there is no folder no/such/folder'),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        load_images(*arguments)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(MissingDataError, match='no images in the folder'):
        load_images(data_dir=tmp_path)


def test_a_folder_with_some_of_the_files(tmp_path):
    write_idx(tmp_path)
    (tmp_path / checksums.STEMS[3]).unlink()
    with pytest.raises(MissingDataError, match=f"missing .'{checksums.STEMS[3]}'"):
        load_images(data_dir=tmp_path)


@pytest.mark.parametrize('name', ['mnist.npz', 'train.npz'])
def test_a_truncated_npz(tmp_path, name):
    write_npz(tmp_path)
    write_chainer_npz(tmp_path)
    if name == 'train.npz':
        (tmp_path / 'mnist.npz').unlink()
    os.truncate(tmp_path / name, 200)
    with pytest.raises(DataError, match='cut short or damaged'):
        load_images(data_dir=tmp_path)


def test_an_npz_without_the_arrays(tmp_path):
    np.savez(tmp_path / 'mnist.npz', x=1)
    with pytest.raises(DataError, match='lacks some of the arrays'):
        load_images(data_dir=tmp_path)


@pytest.mark.parametrize(
    ('which', 'array', 'message'),
    [
        (0, ARRAYS[0].astype(np.float32), 'images of the training set'),
        (1, ARRAYS[1][:-1], 'labels of the training set'),
        (2, ARRAYS[2][:, :3], 'images of the test set'),
        (3, ARRAYS[3].astype(float), 'labels of the test set'),
        (0, ARRAYS[0][:0], 'images of the training set'),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, which, array, message):
    arrays = [*ARRAYS[:which], array, *ARRAYS[which + 1 :]]
    keys = ('x_train', 'y_train', 'x_test', 'y_test')
    np.savez(tmp_path / 'mnist.npz', **dict(zip(keys, arrays, strict=True)))
    with pytest.raises(DataError, match=f'wrong {message}'):
        load_images(data_dir=tmp_path)


def test_only_the_root_reads_and_all_can_scatter(comm, tmp_path):
    root = comm.size - 1
    if comm.rank == root:
        write_idx(tmp_path / 'data')
    found = load_images('auto', tmp_path / 'data', comm=comm, root=root)
    assert (found.train is None) == (comm.rank != root)
    assert (found.n_pixels, found.n_classes) == (16, 3)
    assert len(set(comm.allgather_obj(found.description))) == 1
    part = scatter_dataset(found.train, comm, root, force_equal_length=False)
    labels = [int(y) for mine in comm.allgather_obj([y for _, y in part]) for y in mine]
    assert labels == ARRAYS[1].tolist()


def test_a_failure_at_the_root_is_the_same_error_everywhere(comm, tmp_path):
    write_idx(tmp_path)
    if comm.rank == 0:
        os.truncate(tmp_path / checksums.STEMS[0], 100)
    with pytest.raises(DataError, match='cut short, expected 208 bytes'):
        load_images(data_dir=tmp_path, comm=comm)
    with pytest.raises(MissingDataError, match='there is no folder'):
        load_images(data_dir=tmp_path / 'nowhere', comm=comm)
    with pytest.raises(ArgumentError, match='root'):
        load_images(comm=comm, root=comm.size)


@pytest.mark.slow
def test_debians_fashion_mnist(monkeypatch):
    folder = Path('/usr/share/datasets/fashion-mnist')
    if not folder.is_dir():
        pytest.skip('the package dataset-fashion-mnist is not installed')
    monkeypatch.setattr(images, 'DEBIAN_FASHION_MNIST', folder)
    found = load_images('fashion-mnist')
    assert found.description.endswith('60000 images to train, 10000 to test, 28x28 pixels')
