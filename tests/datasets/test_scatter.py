import os
import sys
import warnings

import chainer.datasets as D
import numpy as np
import pytest

from mnx.datasets import DataSizeError, scatter_dataset, scatter_index
from mnx.datasets.partition import owned_length
from mnx.datasets.scatter import get_epoch_trigger, get_n_iterations_for_one_epoch
from mnx.errors import ArgumentError, MismatchError, MnxError, RemoteError

LENGTHS = [0, 1, 2, 3, 10, 13, 24]


def bounds(n, rank, size, equal):
    """ChainerMN's parts, written down by themselves."""
    if equal:
        start = n * rank // size
        return start, start + (n + size - 1) // size
    start = sum(n // size + (r < n % size) for r in range(rank))
    return start, start + n // size + (rank < n % size)


def reference(dataset, comm, order=None, equal=True):
    return D.SubDataset(dataset, *bounds(len(dataset), comm.rank, comm.size, equal), order)


def only_at(root, comm, dataset):
    return dataset if comm.rank == root else None


def roots(comm):
    return sorted({0, comm.size - 1})


def plus_one(example):
    return example[0] + 1, example[1]


def datasets(n):
    x = np.random.RandomState(5).rand(n, 2, 3)
    y = np.arange(n, dtype=np.uint8)
    return {
        'array': x,
        'list': [f'example {i}' for i in range(n)],
        'tuples': D.TupleDataset(x.astype(np.float16), y),
        'dicts': D.DictDataset(x=x, label=y),
        'transform': D.TransformDataset(D.TupleDataset(x, y), plus_one),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return getattr(a, 'dtype', None) == getattr(b, 'dtype', None) and np.array_equal(a, b)


@pytest.mark.parametrize('equal', [True, False])
@pytest.mark.parametrize('seed', [None, 3], ids=['in order', 'shuffled'])
@pytest.mark.parametrize('kind', datasets(1))
@pytest.mark.parametrize('n', LENGTHS)
def test_a_part_equals_the_references_sub_dataset(comm, n, kind, seed, equal):
    dataset = datasets(n)[kind]
    order = None if seed is None else np.random.RandomState(seed).permutation(n)
    for root in roots(comm):
        part = scatter_dataset(
            only_at(root, comm, dataset),
            comm,
            root,
            shuffle=seed is not None,
            seed=seed,
            force_equal_length=equal,
        )
        expected = reference(dataset, comm, order, equal)
        assert isinstance(part, D.SubDataset)
        assert len(part) == len(expected)
        for index in (slice(None), slice(1, 3), slice(None, None, -2), slice(-2, None)):
            assert same(part[index], expected[index])
        assert all(same(part[i], expected[i]) for i in range(-len(part), len(part)))
        with pytest.raises(IndexError):
            part[len(part)]


@pytest.mark.parametrize('equal', [True, False])
@pytest.mark.parametrize('n', LENGTHS)
def test_all_parts_together_own_each_example_once(comm, n, equal):
    part = scatter_dataset(
        only_at(0, comm, np.arange(n)), comm, shuffle=True, seed=1, force_equal_length=equal
    )
    assert part.n_owned == owned_length(n, comm.rank, comm.size, force_equal_length=equal)
    owned = comm.allgather_obj(part[: part.n_owned])
    assert sorted(x for mine in owned for x in mine) == list(range(n))


def test_shuffling_without_a_seed_is_one_permutation(comm):
    part = scatter_dataset(
        only_at(0, comm, np.arange(1000)), comm, shuffle=True, force_equal_length=False
    )
    dealt = [x for mine in comm.allgather_obj(part[:]) for x in mine]
    assert sorted(dealt) == list(range(1000))
    assert dealt != list(range(1000))


def test_scattering_leaves_the_global_random_state_alone(comm):
    np.random.seed(7)
    scatter_dataset(only_at(0, comm, np.arange(10)), comm, shuffle=True, seed=1)
    assert np.random.rand() == np.random.RandomState(7).rand()


@pytest.mark.parametrize('root', [0, -1], ids=['first', 'last'])
@pytest.mark.parametrize('elsewhere', [(True, 9), (False, 2)], ids=['seed', 'shuffle'])
def test_other_arguments_count_at_the_root_only_which_says_so(comm, root, elsewhere):
    root %= comm.size
    at_root = comm.rank == root
    shuffle, seed = (True, 2) if at_root else elsewhere
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        part = scatter_dataset(
            np.arange(6) if at_root else 'ignored', comm, root, shuffle=shuffle, seed=seed
        )
    expected = reference(np.arange(6), comm, np.random.RandomState(2).permutation(6))
    assert part[:] == expected[:]
    told = [str(w.message) for w in caught if w.filename == __file__]
    assert len(told) == int(at_root and comm.size > 1)
    assert all('another shuffle or seed' in text and 'seed=2' in text for text in told)


def test_a_seed_that_nobody_needs_may_be_any(comm):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        scatter_dataset(only_at(0, comm, np.arange(6)), comm, seed=comm.rank)
        scatter_dataset(only_at(0, comm, np.arange(6)), comm, shuffle=True, seed=3)


def test_parts_can_be_changed_without_the_others_seeing_it(comm):
    whole = np.zeros(comm.size)
    part = scatter_dataset(only_at(0, comm, whole), comm)
    if comm.size > 1:
        part._dataset[0] = comm.rank + 1
        comm.barrier()
        assert part[0] == comm.rank + 1
        assert not whole.any()


@pytest.mark.parametrize('equal', [True, False])
@pytest.mark.parametrize('n', LENGTHS)
def test_scatter_index(comm, n, equal):
    for root in roots(comm):
        given = n if comm.rank == root else None
        found = scatter_index(given, comm, root, force_equal_length=equal)
        assert found == bounds(n, comm.rank, comm.size, equal)


@pytest.mark.parametrize('root', [-1, 99, 'zero', None])
def test_a_root_out_of_range_is_an_error_on_every_rank(comm, root):
    with pytest.raises(ArgumentError, match=r'scatter_dataset: root is not a rank.*rank \d of'):
        scatter_dataset([1, 2], comm, root)
    with pytest.raises(ArgumentError, match='scatter_index: root is not a rank'):
        scatter_index(2, comm, root)


def test_a_root_out_of_range_on_one_rank_is_an_error_on_every_rank(comm):
    root = 99 if comm.rank == comm.size - 1 else 0
    with pytest.raises(ArgumentError, match=f'root is not a rank.*rank {comm.size - 1} of'):
        scatter_dataset([1, 2], comm, root)


def test_ranks_that_disagree_all_raise(comm):
    if comm.size == 1:
        pytest.skip('nobody to disagree with')
    with pytest.raises(MismatchError, match='root=1'):
        scatter_dataset([1, 2], comm, root=int(comm.rank == 1))
    with pytest.raises(MismatchError, match='force_equal_length=False'):
        scatter_index(5, comm, force_equal_length=comm.rank != 0)


@pytest.mark.parametrize('dataset', [None, iter([1, 2]), 5])
def test_a_data_set_without_length_is_an_error_on_every_rank(comm, dataset):
    root = comm.size - 1
    with pytest.raises(DataSizeError, match='does not tell its length') as caught:
        scatter_dataset(dataset if comm.rank == root else [1], comm, root)
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize('seed', [-1, 2**32, 'abc'])
def test_a_wrong_seed_is_an_error_on_every_rank_and_nobody_waits(comm, seed):
    for root in roots(comm):
        with pytest.raises(
            ArgumentError, match=f'scatter_dataset: seed is no seed.*rank {root} of'
        ):
            scatter_dataset(only_at(root, comm, np.arange(9)), comm, root, shuffle=True, seed=seed)
    scatter_dataset(only_at(0, comm, np.arange(9)), comm, seed=seed)  # not shuffled, not needed
    assert len(scatter_dataset(only_at(0, comm, np.arange(9)), comm)) == -(-9 // comm.size)


@pytest.mark.parametrize('n', [-1, 2.5, None])
def test_a_wrong_count_is_an_error_on_every_rank(comm, n):
    with pytest.raises(ArgumentError, match='the number of examples'):
        scatter_index(n, comm)


class Broken:
    """Fails when its last example is read, after some ranks have their parts."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 7:
            raise OSError('no such sector')
        return i


def test_a_failure_while_reading_ends_all_ranks_and_leaves_the_communicator_usable(comm):
    if comm.size == 1:
        pytest.skip('one process reads nothing while it scatters')
    error = OSError if comm.rank == 0 else RemoteError
    with pytest.raises(error, match='no such sector'):
        scatter_dataset(only_at(0, comm, Broken()), comm)
    assert comm.allgather_obj(comm.rank) == list(range(comm.size))


def test_what_cannot_be_pickled_ends_all_ranks(comm):
    if comm.size == 1:
        pytest.skip('nothing travels')
    dataset = D.TransformDataset(np.arange(8), lambda x: x)
    with pytest.raises(Exception, match=r'pickle|lambda') as caught:
        scatter_dataset(only_at(0, comm, dataset), comm)
    assert comm.rank == 0 or isinstance(caught.value, MnxError)
    assert comm.allgather_obj(comm.rank) == list(range(comm.size))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('shuffle', [False, True])
def test_a_receiver_never_holds_more_than_its_part(comm, shuffle):
    if comm.size == 1:
        pytest.skip('one process has it all')
    mega = 2**20
    n_bytes = 96 * mega
    whole = None
    if comm.rank == 0:
        whole = D.TupleDataset(np.ones((n_bytes // 1024, 1024), np.uint8), np.ones(n_bytes // 1024))
    comm.barrier()
    _reset_peak()
    before = _resident()
    part = scatter_dataset(whole, comm, shuffle=shuffle, seed=0)
    grown = _peak() - before
    assert len(part) == -(-len(range(n_bytes // 1024)) // comm.size)
    # the part itself, and MPI's own buffers
    limit = n_bytes / comm.size * (3.2 if comm.rank == 0 else 1.1) + 12 * mega
    assert grown < limit, f'{grown / mega:.0f} MiB for a part of {96 / comm.size:.0f} MiB'


def _reset_peak():
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')


def _peak():
    with open('/proc/self/status') as file:
        line = next(line for line in file if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def _resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGESIZE')


@pytest.mark.parametrize('n', [0, 1, 10, 13])
@pytest.mark.parametrize('equal', [False, True])
def test_deprecated_lengths_of_an_epoch(comm, n, equal):
    """As many batches as an iterator over rank 0's part has, the same number on all ranks."""
    part = scatter_dataset(list(range(n)), comm, force_equal_length=equal)
    start, stop = bounds(n, 0, comm.size, equal)
    expected = len(range(start, stop, 3))
    with pytest.warns(DeprecationWarning, match='get_n_iterations_for_one_epoch'):
        assert get_n_iterations_for_one_epoch(part, 3, comm) == expected
    with pytest.warns(DeprecationWarning, match='get_epoch_trigger'):
        assert get_epoch_trigger(5, part, np.int64(3), comm) == (5 * expected, 'iteration')


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_deprecated_lengths_fail_on_all_ranks(comm):
    last = comm.rank == comm.size - 1
    with pytest.raises(ArgumentError, match='no batch size'):
        get_n_iterations_for_one_epoch([1, 2], 0 if last else 2, comm)
    with pytest.raises(DataSizeError):
        get_epoch_trigger(1, None if last else [1, 2], 2, comm)
    if comm.size > 1:
        with pytest.raises(MismatchError, match='local_batch_size'):
            get_epoch_trigger(1, [1, 2], comm.rank + 1, comm)


def test_a_part_knows_of_which_whole(comm):
    def whole(n, **options):
        data = np.arange(n) if comm.rank == 0 else None
        found = set(comm.allgather_obj(scatter_dataset(data, comm, **options).whole))
        assert len(found) == 1
        return found.pop()

    assert whole(10) == '10 examples'
    shuffled = [whole(10, shuffle=True, seed=seed) for seed in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
