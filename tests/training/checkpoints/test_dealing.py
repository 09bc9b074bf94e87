import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnx.datasets.partition import owned_length, part_of
from mnx.training.checkpoints.dealing import Part, deal, order_of, responsible


def parts_of(n, size, equal):
    return [
        Part(
            part_of(n, rank, size, force_equal_length=equal),
            owned_length(n, rank, size, force_equal_length=equal),
        )
        for rank in range(size)
    ]


@settings(derandomize=True, deadline=None)  # the ranks draw alike
@given(
    n=st.integers(1, 60),
    size=st.integers(1, 7),
    equal=st.booleans(),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
def test_all_that_is_left_is_seen_once_but_for_the_last_ones(n, size, equal, seed, share):
    source = np.random.RandomState(seed)
    left = np.sort(source.permutation(n)[: max(1, int(n * share))])
    parts = parts_of(n, size, equal)
    hands = deal(left, parts)
    fresh = [hand.own[: len(hand.own) - hand.n_again] for hand in hands]
    dealt = np.concatenate([*fresh, *(hand.foreign for hand in hands)])
    np.testing.assert_array_equal(np.sort(dealt), left)
    lengths = [len(hand.own) + len(hand.foreign) for hand in hands]
    if equal:
        assert len(set(lengths)) == 1
        assert sum(hand.n_again for hand in hands) < size
    for hand, part in zip(hands, parts, strict=True):
        assert set(hand.own) <= set(part.positions)
        order = order_of(hand, part, np.random.default_rng(seed))
        length = len(hand.own) + len(hand.foreign)
        assert len(order) == len(part.positions)
        assert len(np.unique(order)) == len(order)
        rest = order[len(order) - length :]
        table = np.concatenate([np.asarray(part.positions, int), hand.foreign])
        np.testing.assert_array_equal(
            np.sort(table[rest]), np.sort(np.concatenate([hand.own, hand.foreign]))
        )
        mine = set(responsible(part, hand.foreign, rest))
        assert mine <= set(table[rest])
        assert mine >= set(hand.foreign)


@pytest.mark.parametrize('size', [1, 2, 3, 5])
def test_at_the_start_of_an_epoch_each_keeps_its_own(size):
    parts = parts_of(23, size, equal=True)
    for hand, part in zip(deal(np.arange(23), parts), parts, strict=True):
        assert set(hand.own) == set(part.positions)
        assert len(hand.foreign) == 0


def test_as_little_as_possible_travels():
    hands = deal(np.array([1, 2, 3, 7, 8, 9]), parts_of(12, 3, equal=True))
    assert [(h.own.tolist(), h.foreign.tolist(), h.n_again) for h in hands] == [
        ([2, 3], [], 0),
        ([7], [1], 0),
        ([8, 9], [], 0),
    ]
