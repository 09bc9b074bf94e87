import inspect
import re

import numpy as np
import pytest
from chainer import training

import mnx
from mnx.errors import ArgumentError
from mnx.extensions import create_multi_node_checkpointer
from tests.training.checkpoints.training import build, parameters


def with_checkpointer(comm, out, *, until=(1, 'epoch'), seed=0, trigger=None, **options):
    """Return a trainer that has the old checkpointer in the place of the new one."""
    trainer = build(comm, out, until=until, seed=seed)
    del trainer._extensions['checkpoint']
    with pytest.warns(DeprecationWarning, match='use mnx.extensions.Checkpoint'):
        checkpointer = create_multi_node_checkpointer('my.name', comm, **options)
    trainer.extend(checkpointer, trigger=trigger)
    return trainer, checkpointer


def names(out):
    return sorted(path.name for path in (out / 'my.name').glob('*'))


@training.make_extension(trigger=(1, 'iteration'), priority=-1000)
def interrupt(trainer):
    if trainer.updater.iteration == 3:
        raise KeyboardInterrupt


def test_the_signature_is_the_old_one():
    parameters = inspect.signature(create_multi_node_checkpointer).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ('name', inspect.Parameter.empty),
        ('comm', inspect.Parameter.empty),
        ('cp_interval', 5),
        ('gc_interval', 5),
        ('path', None),
    ]


@pytest.mark.parametrize('has_path', [False, True])
def test_interrupted_and_loaded(comm, shared_path, has_path):
    out = shared_path / 'out'
    path = shared_path / 'other' if has_path else None
    whole = build(comm, shared_path / 'whole', until=(2, 'epoch'))
    whole.run()
    trainer, checkpointer = with_checkpointer(comm, out, cp_interval=2, path=path)
    trainer.extend(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    comm.barrier()
    assert names(path or out) == ['000002_iteration_2', '000003_iteration_3']
    assert re.match(r'3 checkpoints: \d+\.\d{3} s each', checkpointer.get_stats())

    trainer, checkpointer = with_checkpointer(comm, out, until=(2, 'epoch'), seed=9, path=path)
    optimizer = trainer.updater.get_optimizer('main')
    assert checkpointer.maybe_load(trainer, optimizer).iteration == 3
    trainer.run()
    assert parameters(trainer) == parameters(whole)
    comm.barrier()
    assert names(path or out) == []  # it has come to its end


def test_sets_of_another_training_stay(comm, shared_path):
    trainer, _ = with_checkpointer(comm, shared_path)
    trainer.extend(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    comm.barrier()
    others = names(shared_path)
    trainer, _ = with_checkpointer(comm, shared_path)  # without maybe_load
    trainer.run()
    comm.barrier()
    assert names(shared_path) == others != []


def test_an_error_keeps_the_sets(comm, shared_path):
    trainer, _ = with_checkpointer(comm, shared_path, trigger=(2, 'iteration'))

    @training.make_extension(trigger=(5, 'iteration'))
    def fail(trainer):
        raise ValueError('on all ranks')

    trainer.extend(fail)
    with pytest.raises(ValueError, match='on all ranks'):
        trainer.run(show_loop_exception_msg=False)
    comm.barrier()
    assert names(shared_path) == ['000001_iteration_2', '000002_iteration_4']


def test_nothing_to_load(comm, shared_path):
    trainer, checkpointer = with_checkpointer(comm, shared_path)
    assert not checkpointer.maybe_load(trainer)
    assert checkpointer.get_stats() == 'no checkpoint yet'
    checkpointer.finalize()


def test_an_updater_without_a_trainer(comm, shared_path):
    def make(seed):
        trainer = build(comm, shared_path, seed=seed)
        with pytest.warns(DeprecationWarning, match='Checkpoint'):
            return trainer, create_multi_node_checkpointer('alone', comm)

    trainer, checkpointer = make(0)
    with pytest.raises(ArgumentError, match='no folder is known'):
        checkpointer.save(trainer.updater, 1)
    assert not checkpointer.maybe_load(trainer.updater, path=shared_path)
    for _ in range(3):
        trainer.updater.update()
    checkpointer.save(trainer.updater, trainer.updater.iteration)
    expected = parameters(trainer), np.random.rand()

    other, checkpointer = make(5)
    assert checkpointer.maybe_load(other.updater, path=shared_path).iteration == 3
    assert other.updater.iteration == 3
    assert (parameters(other), np.random.rand()) == expected


def test_wrong_arguments(comm):
    for options in ({'name': ''}, {'name': 'n', 'cp_interval': 0}):
        with pytest.warns(DeprecationWarning, match='Checkpoint'), pytest.raises(ArgumentError):
            create_multi_node_checkpointer(comm=comm, **options)
    assert mnx.extensions.create_multi_node_checkpointer is create_multi_node_checkpointer
