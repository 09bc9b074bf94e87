import chainer
import numpy as np
import pytest
from chainer import training
from chainer.iterators import SerialIterator
from chainer.serializers import DictionarySerializer, NpzDeserializer
from chainer.training.triggers import EarlyStoppingTrigger, IntervalTrigger

from mnx.extensions import MultiNodeEarlyStoppingTrigger


class Model(chainer.Chain):
    """Reports the losses that a test writes down for it."""

    def __init__(self, losses):
        super().__init__()
        self.losses = iter(losses)
        with self.init_scope():
            self.w = chainer.Parameter(np.zeros((), np.float64))

    def forward(self, x):
        loss = self.w * 0 + next(self.losses)
        chainer.report({'loss': loss}, self)
        return loss


def trainer_of(losses, stop, out):
    optimizer = chainer.optimizers.SGD().setup(Model(losses))
    iterator = SerialIterator([np.zeros(())] * 4, 2)
    updater = training.updaters.StandardUpdater(iterator, optimizer)
    return training.Trainer(updater, stop, out=str(out))


def losses_of(rank, n=60):
    """Means over ranks fall for a while; single ranks would stop at different times."""
    common = np.abs(np.arange(n) - 12.0)
    return common + 3 * np.random.RandomState(rank).rand(n)


@pytest.mark.parametrize('check', [(1, 'epoch'), (3, 'iteration'), IntervalTrigger(1, 'epoch')])
def test_stops_as_one_process_on_the_mean(comm, tmp_path, check):
    rows = np.array([losses_of(rank) for rank in range(comm.size)])
    stop = MultiNodeEarlyStoppingTrigger(
        comm, check_trigger=check, patience=2, max_trigger=(30, 'epoch')
    )
    trainer = trainer_of(rows[comm.rank], stop, tmp_path)
    trainer.run()

    check = (1, 'epoch') if isinstance(check, IntervalTrigger) else check
    period = 2 if check[1] == 'epoch' else 3
    means = [rows[:, i : i + period].mean() for i in range(0, 60, period)]
    assert trainer.updater.iteration == expected_stop(means, 2) * period
    assert 'main/loss_aggregated' in trainer.observation


def expected_stop(means, patience):
    best, count = np.inf, 0
    for i, mean in enumerate(means, 1):
        best, count = (mean, 0) if mean < best else (best, count + 1)
        if count >= patience:
            return i
    raise AssertionError('does not stop')


def test_options_of_chainers_trigger(comm):
    make = MultiNodeEarlyStoppingTrigger
    stop = make(comm, monitor='main/accuracy', patients=7, max_trigger=(5, 'epoch'))
    plain = EarlyStoppingTrigger(monitor='main/accuracy', patience=7)
    assert stop._stop.patience == 7
    assert stop._stop.best == plain.best == -np.inf
    assert stop.get_training_length() == (5, 'epoch')
    assert make(comm)._stop.patience == 3
    with pytest.raises(TypeError):
        make(comm, patience=1, patients=2)
    assert make(comm, monitor='x', suffix='!')._stop.monitor == 'x!'


def test_rank_0_speaks(comm, capsys, tmp_path):
    stop = MultiNodeEarlyStoppingTrigger(comm, patience=1, verbose=True)
    trainer_of(np.arange(60.0), stop, tmp_path).run()
    assert ('early stopping' in capsys.readouterr().out) == (comm.rank == 0)


def test_at_the_latest(comm, tmp_path):
    stop = MultiNodeEarlyStoppingTrigger(comm, max_trigger=(3, 'iteration'))
    trainer = trainer_of(losses_of(comm.rank), stop, tmp_path)
    trainer.run()
    assert trainer.updater.iteration == 3


def ends_after(n, stop):
    return lambda trainer: stop(trainer) or trainer.updater.iteration == n


def test_goes_on_where_it_was(comm, tmp_path):
    """Stopped in an epoch and resumed: the same end as without."""

    def make():
        return MultiNodeEarlyStoppingTrigger(comm, patience=2, max_trigger=(30, 'epoch'))

    losses = losses_of(comm.rank)
    whole = trainer_of(losses, make(), tmp_path)
    whole.run()
    for first in (7, whole.updater.iteration - 2):
        stop = make()
        interrupted = trainer_of(losses, ends_after(first, stop), tmp_path)
        interrupted.run()
        interrupted.stop_trigger = stop
        saved = DictionarySerializer()
        saved.save(interrupted)
        resumed = trainer_of(losses[first:], make(), tmp_path)
        NpzDeserializer(saved.target).load(resumed)
        resumed.run()
        assert resumed.updater.iteration == whole.updater.iteration
        assert resumed.stop_trigger._stop.best == whole.stop_trigger._stop.best


@pytest.mark.parametrize('before', [1, 2, 3, 4, 5])
def test_a_snapshot_is_taken_before_it_is_asked(comm, tmp_path, before):
    """What the iteration observed is not lost: neither in the middle nor at the end of an epoch."""
    states = []

    def keep(trainer):
        saved = DictionarySerializer()
        saved.save(trainer)
        states.append({key: np.asarray(value) for key, value in saved.target.items()})

    def run(first, state=None):
        stop = MultiNodeEarlyStoppingTrigger(comm, patience=2, max_trigger=(30, 'epoch'))
        trainer = trainer_of(losses_of(comm.rank)[first:], stop, tmp_path)
        trainer.extend(keep, trigger=(1, 'iteration'), priority=-100)
        if state is not None:
            NpzDeserializer(state).load(trainer)
        trainer.run()
        return trainer.updater.iteration, stop._stop.best, stop._stop.count

    end, best, count = run(0)
    first = end - before
    assert run(first, states[first - 1]) == (end, best, count)


def save(trainer):
    DictionarySerializer().save(trainer)


def test_saving_notes_nothing(comm, tmp_path):
    """A value that was saved is noted once all the same."""
    stop = MultiNodeEarlyStoppingTrigger(comm, max_trigger=(8, 'iteration'))
    trainer = trainer_of(losses_of(comm.rank), stop, tmp_path)
    other = MultiNodeEarlyStoppingTrigger(comm, max_trigger=(8, 'iteration'))
    plain = trainer_of(losses_of(comm.rank), other, tmp_path)
    trainer.extend(save, trigger=(1, 'iteration'))
    for each in (trainer, plain):
        each.run()
    assert stop._stop.best == other._stop.best < np.inf
