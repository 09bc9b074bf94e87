import copy

import chainer.datasets as D
import numpy as np
import pytest
from chainer import iterators

from mnx.datasets import DatasetPart
from mnx.errors import ArgumentError
from mnx.training.evaluation_iterator import EvaluationIterator


def part(n=7, n_owned=5):
    return DatasetPart(np.arange(n), range(n), n_owned)


def serial(dataset, batch_size=3, **options):
    options = {'repeat': False, 'shuffle': False, **options}
    return iterators.SerialIterator(dataset, batch_size, **options)


@pytest.mark.parametrize('batch_size', [1, 2, 3, 7, 10])
@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('make', [iterators.SerialIterator, iterators.MultithreadIterator])
def test_only_owned_examples_are_served(make, shuffle, batch_size):
    iterator = EvaluationIterator(make(part(), batch_size, repeat=False, shuffle=shuffle))
    for expected_count in (5, 10, 15):
        iterator.reset()
        served = [x for batch in iterator for x in batch]
        assert sorted(served) == [0, 1, 2, 3, 4]
        assert iterator.n_served == expected_count


def test_a_whole_data_set_passes_as_it_is():
    iterator = EvaluationIterator(serial(list('abcde'), 2))
    assert list(iterator) == [['a', 'b'], ['c', 'd'], ['e']]
    assert iterator.n_served == 5


@pytest.mark.parametrize('dataset', [[], part(1, 0), part(4, 0)])
def test_no_empty_batch_is_served(dataset):
    iterator = EvaluationIterator(serial(dataset))
    assert list(iterator) == []
    assert iterator.n_served == 0


def test_a_copy_starts_where_the_original_does():
    iterator = EvaluationIterator(serial(part(), 2))
    assert list(copy.copy(iterator)) == list(copy.copy(iterator)) == [[0, 1], [2, 3], [4]]
    assert list(iterator) == [[0, 1], [2, 3], [4]]


def test_what_its_copies_serve_counts():
    iterator = EvaluationIterator(serial(part(), 2))
    next(copy.copy(iterator))
    next(copy.copy(copy.copy(iterator)))
    assert iterator.n_served == 4


def test_it_has_what_its_iterator_has():
    iterator = EvaluationIterator(serial(part(), 2))
    next(iterator)
    assert (iterator.current_position, iterator.batch_size, iterator.is_new_epoch) == (2, 2, False)
    assert hasattr(iterator, 'reset')
    assert not hasattr(iterator, 'no_such_thing')


class WithoutReset:
    """Tells no order either."""

    def __init__(self, dataset):
        self.dataset = dataset
        self._rest = iter([[x] for x in dataset])

    def __next__(self):
        return next(self._rest)


def test_an_iterator_that_cannot_be_reset():
    iterator = EvaluationIterator(WithoutReset([1, 2]))
    assert not hasattr(iterator, 'reset')
    assert list(iterator) == [[1], [2]]


def test_an_unknown_order_is_refused_only_where_it_matters():
    list(EvaluationIterator(WithoutReset(part(n_owned=7))))
    with pytest.raises(ArgumentError, match='WithoutReset does not tell the order'):
        EvaluationIterator(WithoutReset(part()))


def test_a_wrapped_part():
    dataset = D.TransformDataset(D.TupleDataset(part(), list('abcdefg')), lambda pair: pair[1])
    assert list(EvaluationIterator(serial(dataset, 4))) == [['a', 'b', 'c', 'd'], ['e']]
