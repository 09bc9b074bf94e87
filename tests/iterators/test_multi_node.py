from dataclasses import dataclass

import chainer
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.iterators import MultiprocessIterator, MultithreadIterator, SerialIterator
from chainer.serializers import DictionarySerializer, NpzDeserializer

import mnx
from mnx.errors import ArgumentError, DtypeError, MismatchError, MnxError, RemoteError
from mnx.extensions import resume, snapshot
from mnx.iterators import create_multi_node_iterator
from mnx.training.evaluator import create_multi_node_evaluator

ATTRIBUTES = (
    'epoch',
    'epoch_detail',
    'previous_epoch_detail',
    'current_position',
    'is_new_epoch',
    'batch_size',
    'repeat',
)


@dataclass(frozen=True)
class Thing:
    value: int


def examples(kind, n=7):
    if kind == 'float64':
        return np.linspace(0, 1, n * 3).reshape(n, 3)
    if kind == 'big integers':
        return np.arange(n) + 2**53 + 1  # no float holds them all
    if kind == 'pairs':
        return [(np.full((2, 2), i / 3), np.int64(2**40 + i)) for i in range(n)]
    if kind == 'dicts':
        return [{'x': np.full(i, i, np.float16), 'name': str(i)} for i in range(n)]
    if kind == 'empty tuples':
        return [()] * n
    return [Thing(i) for i in range(n)]


KINDS = ['float64', 'big integers', 'pairs', 'dicts', 'empty tuples', 'objects']


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert_same(list(a.items()), list(b.items()))
    elif isinstance(a, (np.ndarray, np.generic)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def both(comm, make, master=0):
    """Return an iterator of all ranks, and a plain one that should do the same on each."""
    shared = make() if comm.rank == master else None
    return create_multi_node_iterator(shared, comm, rank_master=master), make()


def in_order(kind, batch_size=3, **options):
    return lambda: SerialIterator(examples(kind), batch_size, shuffle=False, **options)


@pytest.mark.parametrize('kind', KINDS)
def test_all_ranks_get_the_batches_of_one_process(comm, kind):
    for master in {0, comm.size - 1}:
        iterator, plain = both(comm, in_order(kind), master)
        for _ in range(6):
            batch = iterator.next()
            assert isinstance(batch, list)
            assert_same(batch, plain.next())
            for name in ATTRIBUTES:
                assert getattr(iterator, name) == getattr(plain, name), name


def test_received_arrays_can_be_written_to(comm):
    iterator, _ = both(comm, in_order('float64'))
    batch = iterator.next()
    batch[0] += comm.rank
    assert batch[0][0] == comm.rank


@pytest.mark.parametrize('kind', [SerialIterator, MultithreadIterator, MultiprocessIterator])
def test_iterators_of_chainer(comm, kind):
    options = {'n_processes': 1} if kind is MultiprocessIterator else {}
    data = examples('pairs')
    iterator, plain = both(comm, lambda: kind(data, 3, shuffle=False, **options))
    for _ in range(5):
        assert_same(iterator.next(), plain.next())
    iterator.finalize()
    plain.finalize()


def test_shuffled_by_the_master(comm):
    np.random.seed(comm.rank)
    shared = SerialIterator(examples('big integers'), 2) if comm.rank == 0 else None
    iterator = create_multi_node_iterator(shared, comm)
    served = [[int(x) for x in iterator.next()] for _ in range(9)]
    assert len({repr(s) for s in comm.allgather_obj(served)}) == 1


def test_it_ends_everywhere_and_starts_again(comm):
    iterator, plain = both(comm, in_order('pairs', repeat=False), comm.size - 1)
    for _ in range(2):
        assert_same(list(iterator), list(plain))
        assert iterator.epoch == 1
        with pytest.raises(StopIteration):
            iterator.next()
        iterator.reset()
        plain.reset()
        assert (iterator.epoch, iterator.current_position) == (0, 0)


def test_an_empty_data_set(comm):
    shared = SerialIterator([], 2, repeat=False, shuffle=False) if comm.rank == 0 else None
    iterator = create_multi_node_iterator(shared, comm)
    assert (iterator.batch_size, iterator.epoch) == (2, 0)
    with pytest.raises(AttributeError if comm.rank else ZeroDivisionError):
        _ = iterator.epoch_detail


class Endless(chainer.dataset.Iterator):
    """Has nothing but batches."""

    def __next__(self):
        return 1


def test_what_the_master_lacks_all_lack(comm):
    iterator = create_multi_node_iterator(Endless() if comm.rank == 0 else None, comm)
    assert iterator.next() == 1
    for name in ('reset', 'epoch', 'anything'):
        assert not hasattr(iterator, name)


def test_what_is_written_reaches_the_actual_iterator(comm):
    iterator, _ = both(comm, in_order('pairs'))
    iterator.batch_size = 5
    assert iterator.batch_size == 5
    assert len(iterator.next()) == 5
    assert iterator.batch_size == 5


@pytest.mark.parametrize('shuffle', [False, True])
def test_saved_and_loaded(comm, shuffle):
    """All save the master's state; each goes on from there; a plain iterator can load it, too."""
    np.random.seed(7 + comm.rank)
    make = lambda: SerialIterator(examples('big integers'), 3, shuffle=shuffle)  # noqa: E731
    iterator, _ = both(comm, make, comm.size - 1)
    for _ in range(3):
        iterator.next()
    saved = DictionarySerializer()
    iterator.serialize(saved)
    following = iterator.next()  # of the same epoch: a later order is drawn anew
    standing = [getattr(iterator, name) for name in ATTRIBUTES]

    for loaded in (both(comm, make, comm.size - 1)[0], make()):
        loaded.serialize(NpzDeserializer(saved.target))
        assert (loaded.epoch, loaded.current_position) == (1, 2)
        assert_same(loaded.next(), following)
        assert [getattr(loaded, name) for name in ATTRIBUTES] == standing
    assert len({repr(sorted(s.items())) for s in comm.allgather_obj(saved.target)}) == 1


def test_in_a_training_and_an_evaluation(comm, shared_path):
    """The same parameters and values as with a plain iterator."""
    source = np.random.RandomState(0)
    data = [(x, np.int32(i % 3)) for i, x in enumerate(source.rand(11, 4))]

    def train(wrap):
        with chainer.using_config('dtype', np.float64):
            model = L.Classifier(L.Linear(4, 3, initialW=np.arange(12.0).reshape(3, 4)))
        optimizer = chainer.optimizers.SGD(0.1).setup(model)
        iterator = wrap(lambda: SerialIterator(data, 4, shuffle=False))
        updater = training.updaters.StandardUpdater(iterator, optimizer)
        training.Trainer(updater, (3, 'epoch'), out=str(shared_path)).run()
        test = wrap(lambda: SerialIterator(data, 4, shuffle=False, repeat=False))
        evaluator = training.extensions.Evaluator(test, model)
        return model, create_multi_node_evaluator(evaluator, mnx.create_communicator('local'))()

    expected, expected_means = train(lambda make: make())
    model, means = train(lambda make: both(comm, make)[0])
    np.testing.assert_array_equal(model.predictor.W.array, expected.predictor.W.array)
    if comm.rank == 0:  # elsewhere the data set is not there, and sharing is not known
        assert means == expected_means


def test_in_a_snapshot_that_is_resumed(comm, shared_path):
    """Saved in the second epoch and resumed: the orders of the run that went on."""

    class Notes(chainer.Chain):
        def __init__(self):
            super().__init__()
            self.seen = []
            with self.init_scope():
                self.w = chainer.Parameter(np.zeros((), np.float64))

        def forward(self, x):
            self.seen.append(x.tolist())
            return chainer.functions.sum(x * self.w)

    def make(seed):
        np.random.seed(seed + comm.rank)
        data = np.arange(7.0) if comm.rank == 0 else None
        iterator, model = SerialIterator(data, 3) if comm.rank == 0 else None, Notes()
        iterator = create_multi_node_iterator(iterator, comm)
        optimizer = chainer.optimizers.SGD(0.1).setup(model)
        updater = training.updaters.StandardUpdater(iterator, optimizer)
        return model, training.Trainer(updater, (20, 'iteration'), out=str(shared_path))

    state = np.random.get_state()
    model, trainer = make(1)
    trainer.extend(snapshot(comm, 'at_{.updater.iteration}'), trigger=(5, 'iteration'))
    trainer.run()
    again, trainer = make(100)
    trainer.extend(snapshot(comm, 'again_{.updater.iteration}'), trigger=(5, 'iteration'))
    resume(shared_path / 'at_5', trainer, comm)
    assert trainer.updater.epoch == 2
    trainer.run()
    np.random.set_state(state)
    assert again.seen == model.seen[5:]
    assert len({repr(seen) for seen in comm.allgather_obj(model.seen)}) == 1


def test_errors_on_all_ranks(comm):
    with pytest.raises(ArgumentError, match='rank_master'):
        create_multi_node_iterator(None, comm, rank_master=comm.size)
    with pytest.raises(DtypeError, match=r'the master has no iterator.* NoneType'):
        create_multi_node_iterator(None, comm)
    failing = SerialIterator([1], 1) if comm.rank == 0 else None
    iterator = create_multi_node_iterator(failing, comm)
    if comm.rank == 0:
        failing.dataset = None
    with pytest.raises(TypeError if comm.rank == 0 else RemoteError, match='NoneType'):
        iterator.next()


def test_a_batch_that_cannot_be_pickled(comm):
    shared = SerialIterator([lambda: 0], 1) if comm.rank == 0 else None
    iterator = create_multi_node_iterator(shared, comm)
    with pytest.raises(Exception, match=r'pickle|local object|lambda') as caught:
        iterator.next()
    assert comm.rank == 0 or isinstance(caught.value, MnxError)


@pytest.mark.needs_ranks(2)
def test_masters_must_agree(comm):
    with pytest.raises(MismatchError, match='rank_master=1'):
        create_multi_node_iterator(SerialIterator([1], 1), comm, rank_master=min(comm.rank, 1))
