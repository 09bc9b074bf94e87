import chainer
import chainer.links as L
import numpy as np
import pytest
from chainer.iterators import SerialIterator

from mnx.datasets import scatter_dataset
from mnx.errors import ArgumentError, DtypeError, RemoteError
from mnx.extensions import GenericMultiNodeEvaluator


class Collects(GenericMultiNodeEvaluator):
    """Returns everything, in the order in which it came."""

    def calc_local(self, *args, **kwargs):
        assert not chainer.config.train
        assert not chainer.config.enable_backprop
        return args, kwargs

    def aggregate(self, results):
        return results


def n_batches(rank):
    """Different numbers of batches: none, one message full, more than one."""
    return (17, 8, 0, 3)[rank % 4]


def batches(rank, n):
    data = np.arange(2 * n, dtype=np.float64).reshape(n, 2) + 1000 * rank
    return SerialIterator(data, 1, repeat=False, shuffle=False)


@pytest.mark.parametrize('first', [0, 1, 2])
def test_order_and_root(comm, first):
    root, rank = comm.size - 1, comm.rank
    iterator = batches(rank, n_batches(rank + first))
    evaluator = Collects(comm, iterator, L.Linear(1), root=root)
    evaluations = [evaluator(), evaluator()]  # from the start each time
    expected = [
        [2.0 * i + 1000 * r, 2.0 * i + 1 + 1000 * r]
        for i in range(17)
        for r in range(comm.size)
        if i < n_batches(r + first)
    ]
    for found in evaluations:
        if rank == root:
            assert [args[0][0].tolist() for args, _ in found] == expected
        else:
            assert found is None


@pytest.mark.parametrize(
    ('example', 'args', 'kwargs'),
    [((1, 2), 2, set()), ({'x': 1, 'y': 2}, 0, {'x', 'y'}), (1, 1, set())],
)
def test_arguments(comm, example, args, kwargs):
    iterator = SerialIterator([example], 1, repeat=False, shuffle=False)
    found = Collects(comm, iterator, L.Linear(1), converter=unconcatenated)()
    if comm.rank == 0:
        assert [(len(a), set(k)) for a, k in found] == [(args, kwargs)] * comm.size


@chainer.dataset.converter()
def unconcatenated(batch, device):
    return batch[0]


def test_samples_of_two_ranks_count_once(comm):
    data = np.arange(7.0)
    part = scatter_dataset(data, comm)
    iterator = SerialIterator(part, 2, repeat=False, shuffle=False)
    found = Collects(comm, iterator, L.Linear(1))()
    if comm.rank == 0:
        served = np.concatenate([args[0] for args, _ in found])
        np.testing.assert_array_equal(np.sort(served), data)


def test_progress_hook_on_the_root(comm):
    seen = []
    iterator = batches(comm.rank, 9)
    Collects(comm, iterator, L.Linear(1), root=comm.size - 1, progress_hook=seen.append)()
    assert len(seen) == (9 if comm.rank == comm.size - 1 else 0)
    assert all(len(batch) == 1 for batch in seen)


class Reports(Collects):
    def calc_local(self, x):
        chainer.report({'loss': 1.0}, self.get_target('main'))
        return x.sum()

    def aggregate(self, results):
        chainer.report({'total': sum(results)})


def test_what_aggregate_reports_is_observed(comm):
    observation = {}
    model = L.Classifier(L.Linear(1))
    reporter = chainer.Reporter()
    reporter.add_observer('main', model)
    with reporter, reporter.scope(observation):
        Reports(comm, batches(0, 3), model)()
    assert observation == ({'total': 15.0 * comm.size} if comm.rank == 0 else {})


def test_without_communicator(comm):
    assert len(Collects(None, batches(comm.rank, comm.rank), {'main': L.Linear(1)})()) == comm.rank


class Forgets(Collects):
    def calc_local(self, x):
        return None if self.comm.rank == self.comm.size - 1 else 1


class Fails(Collects):
    def aggregate(self, results):
        raise ZeroDivisionError('no results')


def test_errors_on_all_ranks(comm):
    make = lambda cls, **options: cls(comm, batches(0, 2), L.Linear(1), **options)  # noqa: E731
    with pytest.raises(DtypeError, match='Forgets: calc_local gave no result'):
        make(Forgets)()
    with pytest.raises(ZeroDivisionError if comm.rank == 0 else RemoteError, match='no results'):
        make(Fails)()
    with pytest.raises(TypeError, match=r'aggregate.*calc_local'):
        make(GenericMultiNodeEvaluator)  # both are abstract
    with pytest.raises(ArgumentError, match='root'):
        make(Collects, root=comm.size)


def test_when_a_trainer_calls_it():
    cls = GenericMultiNodeEvaluator
    assert (cls.trigger, cls.default_name) == ((1, 'epoch'), 'validation')
    assert cls.priority == chainer.training.PRIORITY_WRITER
