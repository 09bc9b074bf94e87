from fractions import Fraction
from types import SimpleNamespace

import chainer
import numpy as np
import pytest
from chainer.serializers import DictionarySerializer, NpzDeserializer
from chainer.training.triggers import IntervalTrigger

from mnx.errors import MismatchError, RemoteError
from mnx.extensions import ObservationAggregator
from mnx.training.observations import mean_of_all


class Run:
    """As much of a trainer as a trigger and an extension look at."""

    def __init__(self):
        self.updater = SimpleNamespace(iteration=0)
        self.observation = {}

    def step(self, extension, observation):
        self.updater.iteration += 1
        self.observation = dict(observation)
        extension(self)
        return self.observation


def observed(rank, iteration):
    """Rank 0 always observes, others not in every iteration; exact mean wanted."""
    return rank == 0 or (rank + iteration) % 3 != 0


def value_of(rank, iteration):
    return 10.0 ** (iteration % 5) / (rank + 3)


@pytest.mark.parametrize('period', [1, 4])
@pytest.mark.parametrize('kind', [float, np.float64, np.array, chainer.Variable])
def test_the_exact_mean_of_all_there_is(comm, period, kind):
    extension = ObservationAggregator(comm, 'loss', 'mean', comm_trigger=(period, 'iteration'))
    run = Run()
    for i in range(1, 13):
        value = value_of(comm.rank, i)
        wrapped = kind(np.array(value)) if kind is chainer.Variable else kind(value)
        found = run.step(extension, {'loss': wrapped} if observed(comm.rank, i) else {})
        assert ('mean' in found) == (i % period == 0)
        if 'mean' in found:
            values = [
                Fraction(value_of(rank, j))
                for j in range(i - period + 1, i + 1)
                for rank in range(comm.size)
                if observed(rank, j)
            ]
            assert found['mean'] == float(sum(values)) / len(values)


def test_under_the_same_key_by_default(comm):
    found = Run().step(ObservationAggregator(comm, 'loss'), {'loss': np.float32(comm.rank)})
    assert found == {'loss': (comm.size - 1) / 2}


def test_keys_of_one_rank_only(comm):
    last = comm.size - 1
    found = Run().step(ObservationAggregator(comm, 'a'), {'a': 5.0} if comm.rank == last else {})
    assert found == {'a': 5.0}
    assert Run().step(ObservationAggregator(comm, 'a'), {'b': comm.rank}) == {'b': comm.rank}


def test_an_aggregator_of_ones_own(comm):
    seen = []

    def largest(histories):
        seen.append(histories)
        return max(max(history) for history in histories)

    extension = ObservationAggregator(
        comm, 'x', 'y', comm_trigger=IntervalTrigger(2, 'iteration'), aggregator=largest
    )
    run = Run()
    run.step(extension, {'x': comm.rank})
    assert run.step(extension, {'x': -comm.rank})['y'] == comm.size - 1
    assert seen == ([[[rank, -rank] for rank in range(comm.size)]] if comm.rank == 0 else [])


def test_arrays_are_noted_as_they_are_now(comm):
    extension = ObservationAggregator(comm, 'x', comm_trigger=(2, 'iteration'))
    run, array = Run(), np.arange(3.0) * comm.rank
    run.step(extension, {'x': array})
    array[:] = 99
    found = run.step(extension, {'x': np.arange(3.0) * comm.rank})['x']
    np.testing.assert_allclose(found, np.arange(3.0) * (comm.size - 1) / 2, rtol=1e-15)


def test_values_that_wait_are_saved(comm):
    def make():
        return ObservationAggregator(comm, 'x', comm_trigger=(3, 'iteration'))

    extension, run, saved = make(), Run(), DictionarySerializer()
    for i in (1, 2):
        run.step(extension, {'x': 10.0 * comm.rank + i})
    extension.serialize(saved)
    loaded = make()
    loaded.serialize(NpzDeserializer(saved.target))
    assert run.step(loaded, {'x': 10.0 * comm.rank + 3}) == {'x': 10 * (comm.size - 1) / 2 + 2}


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([np.inf, -np.inf], np.nan),
        ([1e308, 1e308], np.inf),
        ([1.0, np.nan], np.nan),
        ([np.float16(60000)] * 3, 60000.0),
    ],
)
def test_extreme_values(values, expected):
    np.testing.assert_equal(mean_of_all([values, []]), expected)


def test_errors_on_all_ranks(comm):
    def fail(histories):
        raise OSError('no luck')

    extension = ObservationAggregator(comm, 'x', aggregator=fail)
    with pytest.raises(OSError if comm.rank == 0 else RemoteError, match='no luck'):
        Run().step(extension, {'x': 1})
    shapes = ObservationAggregator(comm, 'x', comm_trigger=(2, 'iteration'))
    run = Run()
    run.step(shapes, {'x': np.zeros(2)})
    with pytest.raises(MismatchError, match='shapes'):
        run.step(shapes, {'x': np.zeros(3)})
