import chainer
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.iterators import SerialIterator
from chainer.training import extensions

from mnx.errors import ArgumentError, DataError, DtypeError, MismatchError, RemoteError
from mnx.extensions import multi_node_snapshot, snapshot
from mnx.training.replica_snapshot import complete_sets


def group_of(rank):
    """Even and odd ranks train something else."""
    return rank % 2


def sets_of(comm):
    return [range(0, comm.size, 2)]


def trainer_for(comm, out, n_epochs=2, seed=0):
    data = np.random.RandomState(group_of(comm.rank)).rand(6, 2).astype(np.float32)
    data = [(x, np.float32([x.sum() * (group_of(comm.rank) + 1)])) for x in data]
    random = np.random.RandomState(group_of(comm.rank) + seed)
    model = L.Classifier(
        L.Linear(2, 1, initialW=random.rand(1, 2)),
        lossfun=chainer.functions.mean_squared_error,
        accfun=None,
    )
    model.compute_accuracy = False
    optimizer = chainer.optimizers.MomentumSGD(0.1).setup(model)
    updater = training.updaters.StandardUpdater(SerialIterator(data, 3, shuffle=False), optimizer)
    return training.Trainer(updater, (n_epochs, 'epoch'), out=str(out))


def weights(trainer):
    return trainer.updater.get_optimizer('main').target.predictor.W.array


@pytest.mark.parametrize('by_function', [False, True])
def test_one_file_for_each_set(comm, shared_path, by_function):
    name = 'at_{.updater.iteration}'
    wrapped = extensions.snapshot(filename=name.format if by_function else name)
    extension = multi_node_snapshot(comm, wrapped, sets_of(comm))
    trainer = trainer_for(comm, shared_path)
    trainer.extend(extension)
    assert extension.is_master == (comm.rank < 2)
    trainer.run()
    comm.barrier()
    expected = {f'at_{i}.{r}' for i in (2, 4) for r in range(min(2, comm.size))}
    assert {path.name for path in shared_path.iterdir()} == expected
    with np.load(shared_path / f'at_4.{group_of(comm.rank)}') as saved:
        np.testing.assert_array_equal(
            saved['updater/model:main/predictor/W'], weights(trainer), strict=True
        )


def test_every_replica_goes_on(comm, shared_path):
    """Ended after two epochs, loaded in another run of four: as four in one go."""
    whole = trainer_for(comm, shared_path / 'whole', n_epochs=4)
    whole.run()
    first = trainer_for(comm, shared_path / 'parts')
    first.extend(multi_node_snapshot(comm, extensions.snapshot(), sets_of(comm)))
    first.run()
    comm.barrier()
    second = trainer_for(comm, shared_path / 'parts', n_epochs=4, seed=77)
    wrapped = extensions.snapshot(autoload=True)
    second.extend(multi_node_snapshot(comm, wrapped, sets_of(comm)))
    second.run()
    assert second.updater.iteration == 8
    np.testing.assert_array_equal(weights(second), weights(whole), strict=True)


def test_an_object(comm, shared_path):
    trainer = trainer_for(comm, shared_path)
    link = L.Linear(2, 2, initialW=np.full((2, 2), 7.0))
    wrapped = extensions.snapshot_object(link, 'link_{.updater.epoch}', autoload=True)
    trainer.extend(multi_node_snapshot(comm, wrapped, []))
    trainer.run()
    comm.barrier()
    loaded = L.Linear(2, 2)
    wrapped = extensions.snapshot_object(loaded, 'link_{.updater.epoch}', autoload=True)
    multi_node_snapshot(comm, wrapped, []).initialize(trainer)
    np.testing.assert_array_equal(loaded.W.array, link.W.array)


def test_nothing_to_load(comm, shared_path):
    trainer = trainer_for(comm, shared_path, seed=comm.rank)
    before = weights(trainer).copy()
    extension = multi_node_snapshot(comm, extensions.snapshot(autoload=True), [])
    extension.initialize(trainer)
    np.testing.assert_array_equal(weights(trainer), before)


@pytest.mark.needs_ranks(2)
def test_snapshots_of_different_times(comm, shared_path):
    trainer = trainer_for(comm, shared_path)
    extension = multi_node_snapshot(comm, extensions.snapshot(autoload=True), sets_of(comm))
    trainer.extend(extension)
    trainer.run()
    comm.barrier()
    if comm.rank == 0:
        (shared_path / 'snapshot_iter_4.1').unlink()
    comm.barrier()
    again = trainer_for(comm, shared_path, seed=5)
    before = weights(again).copy()
    with pytest.raises(DataError, match=r'rank 0: snapshot_iter_4\n  rank 1: snapshot_iter_2\n'):
        multi_node_snapshot(comm, extensions.snapshot(autoload=True), sets_of(comm)).initialize(
            again
        )
    np.testing.assert_array_equal(weights(again), before)


@pytest.mark.parametrize(
    ('sets', 'expected'),
    [
        ([], [[0, 1, 2, 3]]),
        ([0], [[0], [1, 2, 3]]),
        ([[0, 1], [2, 3]], [[0, 1], [2, 3]]),
        ([range(0, 4, 2)], [[0, 2], [1, 3]]),
        ([np.int64(3), (2, 0)], [[3], [0, 2], [1]]),
        ([0, 1, 2, 3, []], [[0], [1], [2], [3]]),
    ],
)
def test_sets_are_completed(sets, expected):
    assert complete_sets(sets, 4) == expected


@pytest.mark.parametrize('sets', [[[0, 1], [1]], [[0, 0]], [4], [-1]])
def test_sets_that_make_no_sense(sets):
    with pytest.raises(ArgumentError, match='replica_sets'):
        complete_sets(sets, 4)


def test_errors_on_all_ranks(comm, shared_path):
    with pytest.raises(ArgumentError, match='string with autoload=True'):
        multi_node_snapshot(comm, extensions.snapshot(filename=str, autoload=True), [])
    with pytest.raises(DtypeError, match='got Snapshot'):
        multi_node_snapshot(comm, snapshot(comm), [])
    with pytest.raises(ArgumentError, match='replica_sets'):
        multi_node_snapshot(comm, extensions.snapshot(), [comm.size] if comm.rank == 0 else [])

    def fail(*args):
        raise OSError('disk full')

    wrapped = extensions.snapshot_object(L.Linear(2, 2), 'link', savefun=fail)
    extension = multi_node_snapshot(comm, wrapped, [])
    with pytest.raises(OSError if comm.rank == 0 else RemoteError, match='disk full'):
        extension(trainer_for(comm, shared_path))


@pytest.mark.needs_ranks(2)
def test_all_must_name_the_same_sets(comm):
    with pytest.raises(MismatchError):
        multi_node_snapshot(comm, extensions.snapshot(), [0] if comm.rank == 0 else [])
