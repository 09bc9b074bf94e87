import json
import os
import random
import warnings

import chainer
import chainer.datasets as D
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.iterators import MultiprocessIterator, SerialIterator, ShuffleOrderSampler
from chainer.training import extensions

import mnx
from mnx.datasets import scatter_dataset
from mnx.errors import ArgumentError, DataError, MissingDataError, RemoteError
from mnx.extensions import create_multi_node_evaluator, on_root, resume, snapshot
from mnx.training import snapshot as snapshot_module

EPOCHS = 6


class Net(chainer.Chain):
    """Uses random numbers while it runs, and may keep running statistics."""

    def __init__(self, batch_normalization=False, n_units=9):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(4, n_units)
            self.l2 = L.Linear(n_units, 3)
            if batch_normalization:
                self.bn = L.BatchNormalization(n_units)
        self.normalize = batch_normalization

    def forward(self, x):
        h = F.dropout(F.relu(self.l1(x)), 0.3)
        return self.l2(self.bn(h) if self.normalize else h)


def jitter(example):
    """An augmentation that draws from both global generators."""
    x, t = example
    return x + np.float32(np.random.normal(0, 0.1) + random.gauss(0, 0.1)), t


@pytest.fixture(autouse=True)
def leave_generators_alone():
    states = np.random.get_state(), random.getstate()
    yield
    np.random.set_state(states[0])
    random.setstate(states[1])


def build(comm, out, *, epochs=EPOCHS, seed=0, own_order=False, batchsize=3, **net):
    """Return a trainer whose ranks have different data and different random states."""
    np.random.seed(seed + comm.rank)
    random.seed(seed + comm.rank)
    source = np.random.RandomState(3)
    whole = D.TupleDataset(
        source.rand(37, 4).astype(np.float32), source.randint(0, 3, 37).astype(np.int32)
    )
    data = scatter_dataset(whole if comm.rank == 0 else None, comm, shuffle=True, seed=1)
    sampler = ShuffleOrderSampler(np.random.RandomState(seed + 50 + comm.rank))
    iterator = SerialIterator(
        D.TransformDataset(data, jitter), batchsize, order_sampler=sampler if own_order else None
    )
    model = L.Classifier(Net(**net))
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm)
    optimizer.setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-3))
    updater = training.updaters.StandardUpdater(iterator, optimizer)
    trainer = training.Trainer(updater, (epochs, 'epoch'), out=str(out))
    test = SerialIterator(data, 5, repeat=False, shuffle=False)
    trainer.extend(create_multi_node_evaluator(extensions.Evaluator(test, model), comm))
    trainer.extend(extensions.ExponentialShift('alpha', 0.7), trigger=(1, 'epoch'))
    trainer.extend(on_root(extensions.LogReport(trigger=(5, 'iteration')), comm))
    trainer.extend(snapshot(comm, 'epoch_{.updater.epoch}'))
    return trainer


def parameters(trainer):
    optimizer = trainer.updater.get_optimizer('main')
    found = {name: p.array for name, p in optimizer.target.namedparams()}
    for name, p in optimizer.target.namedparams():
        found.update({f'{name}/{key}': value for key, value in p.update_rule.state.items()})
    return found


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert np.asarray(a[key]).tobytes() == np.asarray(b[key]).tobytes(), key


def log_of(trainer):
    entries = trainer.get_extension('LogReport').log
    return [{k: v for k, v in entry.items() if k != 'elapsed_time'} for entry in entries]


@pytest.mark.parametrize('own_order', [False, True], ids=['global order', 'own order'])
@pytest.mark.parametrize('stopped_at', [1, 3])
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(
    comm, shared_path, stopped_at, own_order
):
    whole = build(comm, shared_path / 'whole', own_order=own_order)
    whole.run()
    expected = parameters(whole), np.random.rand(), random.random()

    build(comm, shared_path / 'part', epochs=stopped_at, own_order=own_order).run()
    rest = build(comm, shared_path / 'part', seed=99, own_order=own_order)  # other random states
    resume(shared_path / 'part' / f'epoch_{stopped_at}', rest, comm)
    rest.run()
    assert_same_bits(parameters(rest), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]
    assert rest.updater.iteration == whole.updater.iteration
    if comm.rank == 0:
        assert log_of(rest) == log_of(whole)


def with_processes(comm, out, *, own_order, epochs=4, seed=0):
    """Return a trainer whose batches are loaded, and its order drawn, ahead of time."""
    trainer = build(comm, out, epochs=epochs, seed=seed)
    order = ShuffleOrderSampler(np.random.RandomState(seed) if own_order else None)
    plain = trainer.updater.get_iterator('main').dataset._dataset  # whose workers draw nothing
    iterator = MultiprocessIterator(plain, 3, n_processes=1, order_sampler=order)
    trainer.updater._iterators['main'] = iterator
    return trainer


def test_a_multiprocess_iterator_with_an_order_of_its_own(comm, shared_path):
    def run(out, **options):
        trainer = with_processes(comm, out, own_order=True, **options)
        if options.get('seed'):
            resume(shared_path / 'part' / 'epoch_2', trainer, comm)
        with warnings.catch_warnings():
            warnings.filterwarnings('error', message='snapshot')
            trainer.run()
        trainer.updater.get_iterator('main').finalize()
        return parameters(trainer)

    whole = run(shared_path / 'whole')
    run(shared_path / 'part', epochs=2)
    assert_same_bits(run(shared_path / 'part', seed=99), whole)


def test_what_a_thread_draws_is_warned_of(comm, shared_path):
    trainer = with_processes(comm, shared_path, own_order=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        trainer.get_extension('snapshot').initialize(trainer)
    trainer.updater.get_iterator('main').finalize()
    told = [str(w.message) for w in caught if 'will not go on bit by bit' in str(w.message)]
    assert len(told) == (comm.rank == 0)


def test_a_training_stopped_between_epochs(comm, shared_path):
    def with_frequent_snapshots(out, **options):
        trainer = build(comm, out, **options)
        trainer.extend(snapshot(comm), name='often', trigger=(1, 'iteration'))
        return trainer

    whole = with_frequent_snapshots(shared_path / 'whole')
    whole.run()
    rest = with_frequent_snapshots(shared_path / 'rest', seed=99)
    resume(shared_path / 'whole' / 'snapshot_iter_5', rest, comm)
    rest.run()
    assert_same_bits(parameters(rest), parameters(whole))


def test_without_the_random_states_it_would_differ(comm, shared_path, monkeypatch):
    whole = build(comm, shared_path / 'whole')
    whole.run()
    monkeypatch.setattr(snapshot_module.random_state, 'restore', lambda *args: None)
    rest = build(comm, shared_path / 'rest', seed=99)
    resume(shared_path / 'whole' / 'epoch_3', rest, comm)
    rest.run()
    name, array = next(iter(parameters(whole).items()))
    assert not np.array_equal(parameters(rest)[name], array)


def test_each_rank_gets_its_own_state_back(comm, shared_path):
    """Even of a model that is another one on each rank."""

    def trainer_of_my_own(fill):
        n_layers = comm.size - comm.rank
        model = chainer.Sequential(
            *(L.Linear(comm.rank + 1, 2, initialW=fill) for _ in range(n_layers))
        )
        optimizer = chainer.optimizers.SGD().setup(model)
        iterator = SerialIterator(list(range(5 + comm.rank)), 2)
        updater = training.updaters.StandardUpdater(iterator, optimizer)
        return training.Trainer(updater, (1, 'iteration'), out=str(shared_path)), model

    trainer, model = trainer_of_my_own(comm.rank + 10)
    trainer._start_at = 0
    snapshot(comm, 'mine')(trainer)
    order = trainer.updater.get_iterator('main')._state.order
    other, other_model = trainer_of_my_own(-1)
    resume(shared_path / 'mine', other, comm)
    np.testing.assert_array_equal(other_model[0].W.array, model[0].W.array)
    np.testing.assert_array_equal(other.updater.get_iterator('main')._state.order, order)


def saved(comm, out, **options):
    """Take a snapshot after one epoch; return its path."""
    build(comm, out, epochs=1, **options).run()
    comm.barrier()
    return out / 'epoch_1'


def test_what_is_equal_is_stored_once(comm, shared_path):
    path = saved(comm, shared_path)
    with np.load(path, allow_pickle=True) as file:
        keys = file.files
        assert json.loads(str(file['mnx/format'])) == {'version': 1, 'size': comm.size}
    assert 'updater/model:main/predictor/l1/W' in keys
    for rank in range(1, comm.size):
        own = {key for key in keys if key.startswith(f'mnx/rank:{rank}/')}
        assert f'mnx/rank:{rank}/updater/iterator:main/order' in own
        assert f'mnx/rank:{rank}/mnx/random' in own
        assert not [key for key in own if 'model:' in key or 'optimizer:' in key]
    assert not [key for key in keys if key.startswith('mnx/rank:0/')]


def test_chainer_itself_can_read_it(comm, shared_path):
    path = saved(comm, shared_path)
    trainer, reference = (build(comm, shared_path, seed=9) for _ in range(2))
    if comm.rank == 0:  # it is rank 0's trainer
        chainer.serializers.load_npz(str(path), trainer)
    resume(path, reference, comm)
    if comm.rank == 0:
        assert_same_bits(parameters(trainer), parameters(reference))
        assert trainer.updater.iteration == reference.updater.iteration > 0


def test_the_folder_holds_whole_files_only(comm, shared_path):
    saved(comm, shared_path)
    comm.barrier()
    assert set(os.listdir(shared_path)) - {'log'} == {'epoch_1'}


def test_a_name_may_be_computed(comm, shared_path):
    trainer = build(comm, shared_path, epochs=1)
    trainer.extend(snapshot(comm, lambda t: f'at-{t.updater.iteration}'), name='computed')
    trainer.run()
    comm.barrier()
    assert (shared_path / f'at-{trainer.updater.iteration}').exists()


def test_a_failing_disk_ends_all_ranks_and_keeps_the_last_file(comm, shared_path, monkeypatch):
    path = saved(comm, shared_path)
    before = path.read_bytes()
    trainer = build(comm, shared_path, epochs=1)
    comm.barrier()

    def full(handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError if comm.rank == 0 else RemoteError, match='No space left'):
        trainer.run(show_loop_exception_msg=False)
    comm.barrier()
    assert path.read_bytes() == before
    assert set(os.listdir(shared_path)) - {'log'} == {'epoch_1'}


def change(path, comm, function):
    """Let rank 0 change the file."""
    comm.barrier()
    if comm.rank == 0:
        function(path)
    comm.barrier()


def rewritten(**changes):
    def rewrite(path):
        with np.load(path, allow_pickle=True) as file:
            state = {key: file[key] for key in file.files}
        state.update({k.replace('__', '/'): v for k, v in changes.items()})
        with open(path, 'wb') as file:
            np.savez(file, **{k: v for k, v in state.items() if v is not None})

    return rewrite


def an_array(path):
    with open(path, 'wb') as file:
        np.save(file, np.ones(3))


def facts(**changes):
    return np.asarray(json.dumps(changes))


@pytest.mark.parametrize(
    ('damage', 'error', 'message'),
    [
        (lambda p: os.truncate(p, 1000), DataError, 'cut short or damaged'),
        (lambda p: os.truncate(p, p.stat().st_size - 1), DataError, 'cut short or damaged'),
        (lambda p: os.truncate(p, 0), DataError, 'cut short or damaged'),
        (lambda p: p.write_bytes(b'no zip at all'), DataError, 'cut short or damaged'),
        (an_array, DataError, 'not an npz file'),
        (lambda p: p.unlink(), MissingDataError, 'there is no file'),
        (rewritten(mnx__format=None), DataError, 'is no snapshot of mnx'),
        (
            rewritten(mnx__format=facts(version=7, size=1)),
            DataError,
            'expected version 1 but got 7',
        ),
        (
            rewritten(mnx__format=facts(version=1, size=64)),
            ArgumentError,
            'another number of ranks, expected 64 but got',
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error_on_all_ranks(
    comm, shared_path, damage, error, message
):
    path = saved(comm, shared_path)
    change(path, comm, damage)
    with pytest.raises(error, match=message):
        resume(path, build(comm, shared_path), comm)
    assert comm.allgather_obj(comm.rank) == list(range(comm.size))


def test_a_flipped_byte_is_found(comm, shared_path):
    path = saved(comm, shared_path)

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 255
        path.write_bytes(data)

    change(path, comm, flip)
    with pytest.raises(DataError, match='cut short or damaged'):
        resume(path, build(comm, shared_path), comm)


def test_another_model_is_told(comm, shared_path):
    path = saved(comm, shared_path)
    with pytest.raises(ArgumentError, match='does not fit this trainer'):
        resume(path, build(comm, shared_path, n_units=5), comm)
    with pytest.raises(ArgumentError, match='predictor/bn'):
        resume(path, build(comm, shared_path, batch_normalization=True), comm)


@pytest.mark.parametrize('change', ['less', 'more'])
def test_what_does_not_fit_changes_nothing(comm, shared_path, change):
    path = saved(comm, shared_path)
    trainer = build(comm, shared_path, seed=9, batch_normalization=change == 'more')
    model = trainer.updater.get_optimizer('main').target
    if change == 'less':
        del model.predictor.l2
    before = [param.array.tobytes() for param in model.params()]
    with pytest.raises(ArgumentError, match='bn' if change == 'more' else 'l2/W was saved'):
        resume(path, trainer, comm)
    assert [param.array.tobytes() for param in model.params()] == before
    assert [param.update_rule.state for param in model.params()] == [None] * len(before)
    assert trainer.updater.iteration == 0


@pytest.mark.needs_ranks(2)
def test_another_trainer_on_one_rank_is_told_on_all(comm, shared_path):
    path = saved(comm, shared_path)
    trainer = build(comm, shared_path)
    if comm.rank == comm.size - 1:
        trainer.extend(extensions.LogReport(), name='unknown')
    with pytest.raises(ArgumentError, match='extensions/unknown'):
        resume(path, trainer, comm)
