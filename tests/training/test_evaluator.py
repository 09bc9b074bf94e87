import copy

import chainer
import chainer.datasets as D
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.iterators import MultithreadIterator, SerialIterator
from chainer.training.extensions import Evaluator

from mnx.datasets import scatter_dataset
from mnx.errors import ArgumentError, MismatchError, RemoteError
from mnx.extensions import MultiNodeEvaluator, create_multi_node_evaluator


class Mean(chainer.Chain):
    """Reports the mean of its batch, and how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        self.calls.append((len(x), chainer.config.train, chainer.config.enable_backprop))
        chainer.report({'value': F.mean(x)}, self)


def serial(dataset, batch_size=2, shuffle=False):
    return SerialIterator(dataset, batch_size, repeat=False, shuffle=shuffle)


def scattered(comm, n, **options):
    whole = np.arange(n, dtype=np.float32) if comm.rank == 0 else None
    return scatter_dataset(whole, comm, **options)


@pytest.mark.parametrize('equal', [True, False])
@pytest.mark.parametrize('batch_size', [1, 2, 3, 10])
@pytest.mark.parametrize('n', [1, 2, 3, 5, 8, 11, 101])
def test_the_mean_over_all_samples_exactly(comm, n, batch_size, equal):
    for shuffle in (False, True):
        part = scattered(comm, n, force_equal_length=equal, shuffle=shuffle, seed=4)
        evaluator = create_multi_node_evaluator(
            Evaluator(serial(part, batch_size, shuffle), Mean()), comm
        )
        assert evaluator() == {'main/value': pytest.approx((n - 1) / 2, rel=1e-7)}


def test_five_samples(comm):
    evaluator = create_multi_node_evaluator(Evaluator(serial(scattered(comm, 5)), Mean()), comm)
    assert evaluator() == {'main/value': 2.0}
    assert evaluator() == {'main/value': 2.0}  # again, from the start


def test_all_ranks_get_the_same_bits(comm):
    part = scattered(comm, 1000, force_equal_length=False, shuffle=True, seed=0)
    found = create_multi_node_evaluator(Evaluator(serial(part, 7), Mean()), comm)()
    assert len({value.hex() for value in comm.allgather_obj(found['main/value'])}) == 1


def test_an_iterator_with_threads_serves_every_evaluation(comm):
    iterator = MultithreadIterator(scattered(comm, 5), 2, repeat=False, shuffle=True, n_threads=2)
    evaluator = create_multi_node_evaluator(Evaluator(iterator, Mean()), comm)
    assert [evaluator() for _ in range(3)] == [{'main/value': 2.0}] * 3
    evaluator.finalize()


def test_equal_to_one_process_with_one_batch(comm):
    random = np.random.RandomState(1)
    x, y = random.rand(53, 6).astype(np.float32), random.randint(0, 4, 53).astype(np.int32)
    model = L.Classifier(L.Linear(6, 4, initialW=random.rand(4, 6)))
    whole = D.TupleDataset(x, y)
    part = scatter_dataset(whole if comm.rank == 0 else None, comm, shuffle=True, seed=2)
    found = create_multi_node_evaluator(Evaluator(serial(part, 5), model), comm)()
    expected = Evaluator(serial(whole, 53), model)()
    assert found.keys() == expected.keys() == {'main/loss', 'main/accuracy'}
    for key, value in expected.items():
        assert found[key] == pytest.approx(float(value), rel=1e-5)


def test_a_part_inside_a_wrapper(comm):
    part = D.TransformDataset(scattered(comm, 5), lambda x: 10 * x)
    assert create_multi_node_evaluator(Evaluator(serial(part), Mean()), comm)() == {
        'main/value': 20.0
    }


def test_ranks_may_have_anything_or_nothing(comm):
    mine = np.full(3 * comm.rank, comm.rank, np.float32)  # rank 0 has nothing
    found = create_multi_node_evaluator(Evaluator(serial(mine), Mean()), comm)()
    ranks = np.arange(comm.size)
    if comm.size == 1:
        assert found == {}
    else:
        expected = float((3 * ranks * ranks).sum() / (3 * ranks).sum())
        assert found == {'main/value': pytest.approx(expected)}


def test_nothing_anywhere(comm):
    assert create_multi_node_evaluator(Evaluator(serial([]), Mean()), comm)() == {}


def test_the_model_is_called_as_by_chainer(comm):
    model = Mean()
    create_multi_node_evaluator(Evaluator(serial(np.zeros(3, np.float32)), model), comm)()
    assert model.calls == [(2, False, False), (1, False, False)]


def test_hook_function_and_converter(comm):
    seen = []
    actual = Evaluator(
        serial([{'a': np.float32(comm.rank + 1)}] * 2, 2),
        Mean(),
        converter=chainer.dataset.concat_examples,
        eval_hook=seen.append,
        eval_func=lambda a: chainer.report({'sum': F.sum(a)}),
    )
    found = create_multi_node_evaluator(actual, comm)()
    assert seen == [actual]
    assert found == {'sum': pytest.approx(2 * (comm.size + 1) / 2)}


class WithoutReset:
    """Can be read once."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.position = 0

    def __next__(self):
        if self.position >= len(self.dataset):
            raise StopIteration
        self.position += 2
        return self.dataset[self.position - 2 : self.position]

    def finalize(self):
        pass


def test_an_iterator_that_cannot_be_reset_is_copied(comm):
    iterator = WithoutReset(scattered(comm, 5, force_equal_length=False))
    evaluator = create_multi_node_evaluator(Evaluator({'main': iterator}, Mean()), comm)
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match='WithoutReset has no reset method'):
            assert evaluator() == {'main/value': 2.0}
    assert iterator.position == 0


@pytest.mark.parametrize('own', [False, True])
def test_one_rank_draws_the_progress_bar(comm, capsys, own):
    cls = OwnCall if own else Evaluator
    actual = cls(serial(scattered(comm, 9)), Mean(), progress_bar=True)
    create_multi_node_evaluator(actual, comm)()
    drawn = capsys.readouterr().out
    assert ('validation [####' in drawn) == (comm.rank == 0)
    assert drawn.endswith('\x1b[J') == (comm.rank == 0)  # and wiped off
    assert actual._progress_bar


def test_a_progress_bar_of_what_tells_no_progress_is_an_error_on_all_ranks(comm):
    actual = Evaluator({'main': WithoutReset([1.0])}, Mean(), progress_bar=True)
    expected = TypeError if comm.rank == 0 else RemoteError
    with (
        pytest.warns(DeprecationWarning, match='WithoutReset'),
        pytest.raises(expected, match='current_position, epoch_detail'),
    ):
        create_multi_node_evaluator(actual, comm)()


class OwnEvaluate(Evaluator):
    """Reads the iterator in its own way and reports the largest example."""

    default_name = 'own'
    priority = 7

    def evaluate(self):
        iterator = self._iterators['main']
        iterator.reset()
        examples = [x for batch in iterator for x in batch]
        return {'n': len(examples), 'sum': float(sum(examples)) / max(len(examples), 1)}


class OwnEvaluateOfACopy(OwnEvaluate):
    """Does as Chainer's documentation says."""

    def evaluate(self):
        examples = [x for batch in copy.copy(self._iterators['main']) for x in batch]
        return {'sum': float(sum(examples)) / max(len(examples), 1)}


class OwnCall(Evaluator):
    """Puts its own result on top."""

    def __call__(self, trainer=None):
        result = super().__call__(trainer)
        return {**result, 'twice': 2 * result.get('main/value', 0)}


def test_an_evaluator_with_its_own_evaluate(comm):
    part = scattered(comm, 5)
    found = create_multi_node_evaluator(OwnEvaluate(serial(part), Mean()), comm)()
    counts = comm.allgather_obj(part.n_owned)
    assert found['sum'] == pytest.approx(2.0)
    assert found['n'] == pytest.approx(sum(c * c for c in counts) / 5)


def test_an_evaluator_that_reads_a_copy(comm):
    evaluator = create_multi_node_evaluator(
        OwnEvaluateOfACopy(serial(scattered(comm, 5)), Mean()), comm
    )
    assert [evaluator(), evaluator()] == [{'sum': 2.0}] * 2


def test_an_evaluator_with_its_own_call(comm):
    part = scattered(comm, 8, force_equal_length=False)
    found = create_multi_node_evaluator(OwnCall(serial(part, 8), Mean()), comm)()
    assert found == {'main/value': pytest.approx(3.5), 'twice': pytest.approx(7.0)}


class Nothing(Evaluator):
    def evaluate(self):
        return {}


def test_an_evaluator_that_returns_nothing(comm):
    assert create_multi_node_evaluator(Nothing(serial([1]), Mean()), comm)() == {}


@pytest.mark.needs_ranks(2)
def test_ranks_that_report_different_things_all_raise(comm):
    name = 'loss' if comm.rank == comm.size - 1 else 'value'
    actual = Evaluator(serial([1.0]), Mean(), eval_func=lambda x: chainer.report({name: 1.0}))
    with pytest.raises(MismatchError, match='Report the same names on all ranks'):
        create_multi_node_evaluator(actual, comm)()


def test_a_failure_on_one_rank_is_a_failure_on_all(comm):
    def fail(x):
        if comm.rank == comm.size - 1:
            raise ZeroDivisionError('in the model')

    actual = Evaluator(serial([1.0]), Mean(), eval_func=fail)
    expected = ZeroDivisionError if comm.rank == comm.size - 1 else RemoteError
    iterator = actual.get_iterator('main')
    with pytest.raises(expected, match='in the model'):
        create_multi_node_evaluator(actual, comm)()
    assert actual.get_iterator('main') is iterator


def test_the_actual_evaluator_is_not_changed(comm):
    actual = Evaluator(serial(scattered(comm, 5)), Mean())
    before = dict(vars(actual))
    evaluator = create_multi_node_evaluator(actual, comm)
    evaluator()
    assert vars(actual) == before
    assert isinstance(evaluator, MultiNodeEvaluator)
    assert isinstance(evaluator, Evaluator)
    assert evaluator.get_target('main') is actual.get_target('main')
    assert evaluator.get_all_iterators() == actual.get_all_iterators()


def test_only_evaluators_are_taken(comm):
    with pytest.raises(ArgumentError, match='Derive your class from Evaluator'):
        create_multi_node_evaluator(lambda trainer: None, comm)


def trainer_with(comm, tmp_path, *evaluators):
    model = L.Classifier(L.Linear(1, 2))
    x = np.arange(8, dtype=np.float32).reshape(4, 2, 1)[:, 0] + comm.rank
    iterator = SerialIterator(D.TupleDataset(x, np.zeros(4, np.int32)), 2)
    optimizer = chainer.optimizers.SGD(0).setup(model)
    updater = training.updaters.StandardUpdater(iterator, optimizer)
    trainer = training.Trainer(updater, (1, 'epoch'), out=str(tmp_path))
    for evaluator in evaluators:
        trainer.extend(create_multi_node_evaluator(evaluator, comm))
    return trainer


def test_in_a_trainer_it_is_known_by_the_usual_names(comm, tmp_path):
    part = scattered(comm, 5)
    actual = [Evaluator(serial(part), Mean()) for _ in range(2)]
    trainer = trainer_with(comm, tmp_path, *actual, OwnEvaluate(serial(part), Mean()))
    trainer.run()
    for key in ('validation/main/value', 'validation_1/main/value', 'sum'):
        assert trainer.observation[key] == pytest.approx(2.0)
    assert trainer.get_extension('own').priority == 7
    assert trainer.get_extension('validation').trigger == (1, 'epoch')
    assert actual[1].name == 'validation_1'


def test_twice_is_once(comm):
    """A wrapper around a wrapper would count every sample as often as there are ranks."""
    part = scattered(comm, 11, force_equal_length=False)
    once = create_multi_node_evaluator(Evaluator(serial(part), Mean()), comm)
    twice = create_multi_node_evaluator(once, comm)
    assert twice is once
    assert twice() == {'main/value': 5.0}


def test_twice_over_other_ranks(comm):
    once = create_multi_node_evaluator(Evaluator(serial(np.zeros(3, 'f4')), Mean()), comm)
    with comm.split(0, comm.rank) as other, pytest.raises(ArgumentError, match='actual_evaluator'):
        create_multi_node_evaluator(once, other)


class ReadsTheDataSet(Evaluator):
    def evaluate(self):
        values = self.get_iterator('main').dataset[:]
        return {'mean': np.mean(values)} if len(values) else {'mean': np.nan}


@pytest.mark.parametrize('equal', [True, False])
def test_an_evaluator_that_reads_the_data_set_itself(comm, equal):
    part = scattered(comm, 5 * comm.size, force_equal_length=equal)
    evaluator = create_multi_node_evaluator(ReadsTheDataSet(serial(part), Mean()), comm)
    assert evaluator() == {'mean': pytest.approx((5 * comm.size - 1) / 2, rel=1e-12)}
    mine = np.arange(3.0 * (comm.rank == 0))  # nothing on the others
    evaluator = create_multi_node_evaluator(ReadsTheDataSet(serial(mine), Mean()), comm)
    assert evaluator() == {'mean': 1.0}


class WithThreshold(OwnEvaluate):
    threshold = 1

    def evaluate(self):
        return {'own': float(self.threshold)}


def test_attributes_are_those_of_the_actual_evaluator(comm):
    model, called = Mean(), []
    evaluator = create_multi_node_evaluator(Evaluator(serial(scattered(comm, 5)), model), comm)
    assert evaluator.eval_func is None
    evaluator.eval_hook = called.append
    evaluator.trigger = 2, 'epoch'
    evaluator()
    assert called == [evaluator.actual_evaluator]
    assert evaluator.trigger == (2, 'epoch')
    own = create_multi_node_evaluator(WithThreshold(serial(scattered(comm, 5)), model), comm)
    assert own.threshold == 1
    own.threshold = 3
    assert own() == {'own': 3.0}
    assert not hasattr(own, 'no_such_thing')
