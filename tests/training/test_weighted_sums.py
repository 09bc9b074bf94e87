import math

import chainer
import numpy as np
import pytest

from mnx.errors import DtypeError, MismatchError
from mnx.training.weighted_sums import RankResult, WeightedSums, combine


def result(*batches):
    """What a rank finds that has seen batches of (observation, size)."""
    sums = WeightedSums()
    for observation, size in batches:
        sums.add_scalars(observation, size)
    return RankResult(sum(size for _, size in batches), sums.to_host())


def test_batches_count_by_their_size():
    found = combine([result(({'x': 1.0}, 3), ({'x': 5.0}, 1)), result(({'x': 9.0}, 4))])
    assert found == {'x': (3 + 5 + 36) / 8}


def test_all_kinds_of_scalars_are_added_in_float64():
    observation = {
        'python': 2,
        'numpy': np.float32(0.1),
        'array': np.array(0.1, np.float16),
        'variable': chainer.Variable(np.array(2.5, np.float32)),
        'bool': np.bool_(True),
    }
    found = combine([result(*[(observation, 1)] * 1000)])
    assert found == {
        'python': 2.0,
        'numpy': pytest.approx(float(np.float32(0.1)), rel=1e-12),
        'array': pytest.approx(float(np.float16(0.1)), rel=1e-12),
        'variable': 2.5,
        'bool': 1.0,
    }
    assert all(type(value) is float for value in found.values())


def test_a_pair_brings_its_own_weight():
    assert combine([result(({'x': (1.0, 9)}, 2), ({'x': (11.0, np.int32(1))}, 5))]) == {'x': 2.0}


def test_what_is_no_scalar_is_left_out():
    assert combine([result(({'x': np.zeros(3), 'y': None, 's': [1]}, 2))]) == {}


def test_a_key_is_averaged_over_the_samples_that_reported_it():
    ranks = [result(({'a': 1.0, 'b': 4.0}, 2), ({'a': 3.0}, 2)), result(({'a': 8.0}, 4)), result()]
    assert combine(ranks) == {'a': 5.0, 'b': 4.0}


def test_nothing_at_all():
    assert combine([result(), result()]) == {}


@pytest.mark.parametrize('other', [{'loss': 1.0}, {}])
def test_ranks_that_have_nothing_in_common_are_told(other):
    with pytest.raises(MismatchError, match=r"\['x'\] as on rank 1 .* \(rank 2 of 3\)"):
        combine([result(), result(({'x': 1.0}, 2)), result((other, 2))])


def test_ranks_with_samples_that_all_report_nothing():
    assert combine([result(({}, 3)), result(({}, 2))]) == {}


def test_means_of_arrays():
    results = []
    for values, n in (([1.0, 2.0], 1), ([5.0, 6.0], 3)):
        sums = WeightedSums()
        sums.add_means({'iou': np.array(values, np.float32), 'n': 2}, n)
        results.append(RankResult(n, sums.to_host()))
    found = combine(results)
    np.testing.assert_array_equal(found['iou'], [4.0, 5.0])
    assert found['n'] == 2.0


def test_arrays_of_different_shapes():
    results = []
    for length in (2, 3):
        sums = WeightedSums()
        sums.add_means({'iou': np.zeros(length)}, 1)
        results.append(RankResult(1, sums.to_host()))
    with pytest.raises(MismatchError, match="'iou' in different shapes"):
        combine(results)


@pytest.mark.parametrize('value', ['good', None, object()])
def test_what_cannot_be_averaged(value):
    with pytest.raises(DtypeError, match="cannot average 'x'"):
        WeightedSums().add_means({'x': value}, 1)


def test_a_weight_of_zero_gives_nan():
    assert math.isnan(combine([result(({'x': (1.0, 0)}, 2))])['x'])


NOT_FINITE = {
    'infinities of both signs': [math.inf, -math.inf],
    'an infinity': [1.0, math.inf],
    'nan': [1.0, math.nan],
    'too large a sum': [1e308, 1e308],
}


@pytest.mark.parametrize('values', NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize('spread', ['over ranks', 'over batches'])
@pytest.mark.parametrize('shape', [(), (2,)])
def test_what_diverged_comes_out_as_in_floating_point(values, spread, shape):
    """As Chainer's Evaluator: NaN and infinity are results, not errors."""
    arrays = [np.full(shape, value) for value in values]
    sums = [WeightedSums() for _ in values]
    for i, array in enumerate(arrays):
        sums[i if spread == 'over ranks' else 0].add_means({'x': array}, 1)
    found = combine([RankResult(1, s.to_host()) for s in sums if s.to_host()])['x']
    np.testing.assert_array_equal(found, np.full(shape, sum(values) / len(values)))
