import pickle

import chainer.datasets as D
import numpy as np
import pytest
from chainer.dataset import DatasetMixin

from mnx.datasets import register_take, take

N = 11
X = np.random.RandomState(0).rand(N, 3).astype(np.float32)
Y = np.arange(N, dtype=np.int8) * 2


class Items:
    """Has items and a length, nothing else."""

    def __init__(self, n):
        self.big = bytes(1_000_000)
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return i * i


class Growing(DatasetMixin):
    """Makes each example anew: 10, 11, 12 ... for each time it was asked."""

    def __init__(self):
        self.asked = 0

    def __len__(self):
        return N

    def get_example(self, i):
        self.asked += 1
        return i, self.asked


class Scaled(DatasetMixin):
    def __init__(self, x, scale):
        self.x, self.scale = x, scale

    def __len__(self):
        return len(self.x)

    def get_example(self, i):
        return self.x[i] * self.scale


def double(example):
    return example[0] * 2, example[1]


ORDER = np.random.RandomState(1).permutation(N)
DATASETS = {
    'array': X,
    'F-order': np.asfortranarray(X),
    'reversed view': X[::-1],
    'uint8': Y.view(np.uint8),
    'list': list(Y),
    'tuple': tuple(Y),
    'range': range(N),
    'tuple dataset': D.TupleDataset(X, Y, list(range(N))),
    'dict dataset': D.DictDataset(x=X, y=Y),
    'sub': D.SubDataset(D.TupleDataset(np.tile(X, (2, 1)), np.tile(Y, 2)), 3, 3 + N),
    'shuffled sub': D.SubDataset(np.tile(X, (2, 1)), 2, 2 + N, np.r_[ORDER + N, ORDER]),
    'transform': D.TransformDataset(D.TupleDataset(X, Y), double),
    'concatenated': D.ConcatenatedDataset(X[:4], X[4:4], list(X[4:7]), X[7:]),
    'items': Items(N),
    'object array': np.array([{'a': i} for i in range(N)]),
}
INDICES = {
    'range': range(3, 8),
    'nothing': range(5, 5),
    'everything': range(N),
    'some': np.array([9, 0, 4, 5, 1]),
    'none': np.array([], np.intp),
}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return getattr(a, 'dtype', None) == getattr(b, 'dtype', None) and np.array_equal(a, b)


@pytest.mark.parametrize('indices', INDICES.values(), ids=INDICES)
@pytest.mark.parametrize('dataset', DATASETS.values(), ids=DATASETS)
def test_a_part_has_the_examples_at_the_indices(dataset, indices):
    part = take(dataset, indices)
    assert len(part) == len(indices)
    for example, i in zip(part, indices, strict=True):
        assert same(example, dataset[int(i)])


@pytest.mark.parametrize('indices', [range(3, 8), np.array([9, 0, 4])], ids=['range', 'some'])
@pytest.mark.parametrize('name', [name for name in DATASETS if name != 'object array'])
def test_a_part_holds_nothing_of_the_rest(name, indices):
    whole, part = DATASETS[name], take(DATASETS[name], indices)
    if isinstance(whole, np.ndarray):
        assert part.nbytes == len(indices) * whole[0].nbytes
        assert not np.shares_memory(part, whole)
        assert part.base is None or part.base.nbytes == part.nbytes
    assert len(pickle.dumps(part)) < 3000


def test_a_memory_map_becomes_an_array(tmp_path):
    np.save(tmp_path / 'x.npy', X)
    mapped = np.load(tmp_path / 'x.npy', mmap_mode='r')
    for indices in (range(2, 5), np.array([7, 1])):
        part = take(mapped, indices)
        assert type(part) is np.ndarray
        np.testing.assert_array_equal(part, X[list(indices)])


def test_rows_of_a_file_are_read_at_once_and_in_the_asked_order(tmp_path):
    h5py = pytest.importorskip('h5py')
    with h5py.File(tmp_path / 'x.h5', 'w') as file:
        dataset = file.create_dataset('x', data=X)
        np.testing.assert_array_equal(take(dataset, range(2, 5)), X[2:5])
        np.testing.assert_array_equal(take(dataset, np.array([7, 1, 9])), X[[7, 1, 9]])


def test_examples_made_on_demand_are_not_frozen():
    part = take(Growing(), np.array([4, 2]))
    assert [part[0], part[0], part[1]] == [(4, 1), (4, 2), (2, 3)]


def test_a_subclass_is_not_taken_for_its_base():
    class Negated(D.TupleDataset):
        def __getitem__(self, index):
            return tuple(-x for x in super().__getitem__(index))

    part = take(Negated(np.arange(5)), range(2, 4))
    assert list(part) == [(-2,), (-3,)]


def test_a_registered_class_is_taken_apart():
    big = Scaled(np.arange(1_000_000), 3)
    assert len(pickle.dumps(take(big, range(10)))) > 1_000_000

    @register_take(Scaled)
    def take_scaled(dataset, indices):
        return Scaled(take(dataset.x, indices), dataset.scale)

    part = take(big, range(10, 15))
    assert list(part) == [30, 33, 36, 39, 42]
    assert len(pickle.dumps(part)) < 1000
