"""Where iterators stand: what is saved of them, and how it is dealt out again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import chainer.datasets as D
import numpy as np
import pytest
from chainer.iterators import MultithreadIterator, SerialIterator
from chainer.serializers import DictionarySerializer, NpzDeserializer

from mnx.communicators import Communicator
from mnx.datasets.part import DatasetPart
from mnx.datasets.partition import owned_length, part_of
from mnx.errors import ArgumentError
from mnx.training.checkpoints import positions
from mnx.training.checkpoints.positions import InOrder
from mnx.training.snapshot import State
from tests.launching import alone

N = 12
PREFIX = positions.prefix_of('main')
LEFT, FOREIGN, WHOLE = (f'mnx/iterator:main/{what}' for what in ('left', 'foreign', 'whole'))


def part(rank: int, size: int, whole: str = 'twelve') -> DatasetPart:
    """Return what rank holds of 12 examples, each of which is its own position."""
    mine = part_of(N, rank, size)
    return DatasetPart(np.array(mine), mine, owned_length(N, rank, size), whole)


def trainer_of(dataset: Any, **options: Any) -> Any:
    """Return all of a trainer that is looked at: one iterator, one example at a time."""
    iterator = SerialIterator(dataset, 1, **options)
    return SimpleNamespace(updater=SimpleNamespace(_iterators={'main': iterator}))


def saved(trainer: Any) -> State:
    """Return the state of the iterator as a checkpoint has it."""
    (iterator,) = positions.iterators_of(trainer).values()
    serializer = DictionarySerializer(path=PREFIX)
    iterator.serialize(serializer)
    state = {key: np.asarray(value) for key, value in serializer.target.items()}
    return state | positions.capture(trainer, state)


def load(trainer: Any, state: State) -> None:
    (iterator,) = positions.iterators_of(trainer).values()
    iterator.serialize(NpzDeserializer(state, PREFIX))


def take(trainer: Any, n: int) -> list[int]:
    (iterator,) = positions.iterators_of(trainer).values()
    return [int(x) for _ in range(n) for x in iterator.next()]


def rest_of_epoch(trainer: Any) -> list[int]:
    (iterator,) = positions.iterators_of(trainer).values()
    epoch, seen = iterator.epoch, []
    while iterator.epoch == epoch:
        seen += take(trainer, 1)
    return seen


def stopped(size: int, n_seen: int, **options: Any) -> tuple[list[State], list[int]]:
    """Return the states of `size` ranks that have seen `n_seen` each, and what they have seen."""
    trainers = [trainer_of(part(rank, size), **options) for rank in range(size)]
    seen = [x for trainer in trainers for x in take(trainer, n_seen)]
    return [saved(trainer) for trainer in trainers], seen


@alone
@pytest.mark.parametrize(
    ('key', 'expected'),
    [
        ('updater/iterator:main/order', True),
        ('mnx/iterator:other/left', True),
        ('updater/model:iterator:main/W', False),
        ('mnx/random', False),
        ('iterator:main', False),
    ],
)
def test_which_values_are_of_iterators(key: str, expected: bool) -> None:
    assert positions.is_of_iterators(key) == expected


@alone
def test_iterators_come_sorted_by_name() -> None:
    """On all ranks alike, since there are messages for each."""
    updater = SimpleNamespace(_iterators={'b': 1, 'a': 2})
    assert list(positions.iterators_of(SimpleNamespace(updater=updater)).items()) == [
        ('a', 2),
        ('b', 1),
    ]
    assert positions.iterators_of(SimpleNamespace(updater=object())) == {}


@alone
class TestCapture:
    def test_the_owned_positions_that_are_left(self) -> None:
        """5 ranks hold 3 each: the last one of some belongs to the next."""
        for rank in range(5):
            state = saved(trainer_of(part(rank, 5), shuffle=False))
            first = part_of(N, rank, 5).start
            expected = range(first, first + owned_length(N, rank, 5))
            np.testing.assert_array_equal(state[LEFT], expected)
            assert (len(state[FOREIGN]), str(state[WHOLE])) == (0, 'twelve')

    def test_less_what_was_seen(self) -> None:
        trainer = trainer_of(part(1, 2), shuffle=True)
        seen = take(trainer, 4)
        np.testing.assert_array_equal(saved(trainer)[LEFT], sorted({*range(6, 12)} - {*seen}))

    def test_below_a_wrapper(self) -> None:
        data = D.TransformDataset(part(0, 2), lambda x: x)
        trainer = trainer_of(data, shuffle=False)
        take(trainer, 2)
        np.testing.assert_array_equal(saved(trainer)[LEFT], [2, 3, 4, 5])

    def test_the_length_of_data_that_were_not_scattered(self) -> None:
        state = saved(trainer_of(list(range(5)), shuffle=False))
        found = {key: value.tolist() for key, value in state.items() if key.startswith('mnx/')}
        assert found == {'mnx/iterator:main/length': 5}

    def test_what_was_borrowed_counts_until_the_epoch_ends(self) -> None:
        data = part(0, 2)
        data.borrow(np.array([8, 9]), [8, 9])
        trainer = trainer_of(data)
        at = {f'{PREFIX}current_position': np.asarray(3)}
        state = {f'{PREFIX}order': np.array([2, 3, 4, 6, 5, 7]), **at}
        found = positions.capture(trainer, state)
        np.testing.assert_array_equal(found[LEFT], [5, 8, 9])
        np.testing.assert_array_equal(found[FOREIGN], [8, 9])
        state = {f'{PREFIX}order': np.array([2, 3, 4, 1, 5, 0]), **at}
        found = positions.capture(trainer, state)
        np.testing.assert_array_equal(found[LEFT], [0, 1, 5])
        assert len(found[FOREIGN]) == len(data.foreign) == 0


@alone
class TestPrepare:
    @pytest.mark.parametrize('name', ['order', '_order'])
    def test_an_iterator_without_an_order_gets_one_in_order(self, name: str) -> None:
        trainer = trainer_of(list(range(5)), shuffle=False)
        positions.prepare(trainer, {f'{PREFIX}{name}': np.arange(5)})
        assert isinstance(trainer.updater._iterators['main'].order_sampler, InOrder)
        assert take(trainer, 10) == [0, 1, 2, 3, 4] * 2

    def test_only_if_one_was_saved(self) -> None:
        trainer = trainer_of(list(range(5)), shuffle=False)
        positions.prepare(trainer, {f'{PREFIX}_order': np.asarray(None)})  # Chainer's None
        assert trainer.updater._iterators['main'].order_sampler is None

    def test_its_own_order_stays(self) -> None:
        trainer = trainer_of(list(range(5)), shuffle=True)
        sampler = trainer.updater._iterators['main'].order_sampler
        positions.prepare(trainer, {f'{PREFIX}order': np.arange(5)})
        assert trainer.updater._iterators['main'].order_sampler is sampler


class TestBorrow:
    def test_the_examples_come_from_who_owns_them(self, comm: Communicator) -> None:
        """Each wants one of every other rank, in an order that is not theirs."""
        mine = part(comm.rank, comm.size)
        others = [part_of(N, r, comm.size).start for r in range(comm.size) if r != comm.rank]
        wanted = np.array(others[::-1], np.int64)
        positions.borrow(trainer_of(mine), {FOREIGN: wanted}, comm)
        assert [int(mine[len(mine) + i]) for i in range(len(wanted))] == wanted.tolist()
        np.testing.assert_array_equal(mine.foreign, wanted)

    @pytest.mark.needs_ranks(2)
    def test_of_one_rank_alone(self, comm: Communicator) -> None:
        mine = part(comm.rank, comm.size)
        state = {FOREIGN: np.array([N - 1, N - 2])} if comm.rank == 0 else {}
        positions.borrow(trainer_of(mine), state, comm)
        found = [int(mine[len(mine) + i]) for i in range(len(mine.foreign))]
        assert found == ([N - 1, N - 2] if comm.rank == 0 else [])


class TestDealAgain:
    @pytest.mark.parametrize('shuffle', [None, False], ids=['shuffled', 'in order'])
    @pytest.mark.parametrize(('then', 'n_seen'), [(1, 1), (2, 2), (3, 2), (5, 1)])
    def test_what_is_left_is_seen(
        self, comm: Communicator, then: int, n_seen: int, shuffle: bool | None
    ) -> None:
        """Once each, but for as many as are told."""
        np.random.seed(then)  # the ranks draw the same past
        states, seen = stopped(then, n_seen, shuffle=shuffle)
        left = sorted({int(x) for state in states for x in state[LEFT]})
        trainer = trainer_of(part(comm.rank, comm.size), shuffle=shuffle)
        dealt, notes = positions.deal_again(trainer, states, comm)
        positions.prepare(trainer, dealt)
        load(trainer, {**states[0], **dealt})
        positions.borrow(trainer, dealt, comm)
        rest = comm.allgather_obj(rest_of_epoch(trainer))
        share = -(-len(left) // comm.size)
        n_again = share * comm.size - len(left)
        assert [len(each) for each in rest] == [share] * comm.size
        assert {*left} <= {x for each in rest for x in each}
        assert {*left} | {*seen} == {*range(N)}
        told = f'{n_again} examples are seen again in this epoch, since {len(left)} are left'
        assert notes == ([f'{told} for {comm.size} ranks'] if n_again else [])

    def test_a_shuffled_rest_is_shuffled(self, comm: Communicator) -> None:
        for shuffle in (True, False):
            states, _ = stopped(1, 0, shuffle=shuffle)
            dealt, _ = positions.deal_again(trainer_of(part(comm.rank, comm.size)), states, comm)
            orders = comm.allgather_obj(dealt[f'{PREFIX}order'].tolist())
            assert any(order != sorted(order) for order in orders) == shuffle

    def test_data_that_are_alike_on_all_ranks_are_left_as_they_were(
        self, comm: Communicator
    ) -> None:
        trainer = trainer_of(list(range(5)), shuffle=False)
        take(trainer, 2)
        assert positions.deal_again(trainer, [saved(trainer)] * 3, comm) == ({}, [])

    @pytest.mark.parametrize('what', ['half', 'joined', 'own'])
    def test_a_rank_s_own_data_that_mnx_cannot_deal_out(
        self, comm: Communicator, what: str
    ) -> None:
        """All ranks stand in the same place, which is another one in other data."""

        def of(rank: int, size: int) -> Any:
            whole = part(rank, size)
            half = D.SubDataset(whole, 0, len(whole) // 2)
            own = list(part_of(N, rank, size))
            return {'half': half, 'joined': D.ConcatenatedDataset(whole, whole), 'own': own}[what]

        size = 2 * comm.size
        trainers = [trainer_of(of(rank, size), shuffle=False) for rank in range(size)]
        here = trainer_of(of(comm.rank, comm.size), shuffle=False)
        at_start = [saved(trainer) for trainer in trainers]
        assert positions.deal_again(here, at_start, comm) == ({}, [])
        if len(of(0, size)) == 1:
            return  # at the start again
        for trainer in trainers:
            take(trainer, 1)
        later = [saved(trainer) for trainer in trainers]
        text = f'expected {len(of(0, size))} examples but got {len(of(0, comm.size))}, so'
        self.refused(comm, here, later, text)
        for state in later:  # of a checkpoint from before
            del state['mnx/iterator:main/length']
        assert positions.deal_again(here, later, comm) == ({}, [])

    def refused(self, comm: Communicator, trainer: Any, states: Sequence[State], text: str) -> None:
        with pytest.raises(ArgumentError, match=re.escape(text)):
            positions.deal_again(trainer, states, comm)

    def test_another_position_on_each_rank(self, comm: Communicator) -> None:
        states = []
        for n in (1, 2):
            trainer = trainer_of(list(range(5)), shuffle=False)
            take(trainer, n)
            states.append(saved(trainer))
        text = "iterator 'main' cannot go on with another number of ranks, expected data from"
        self.refused(comm, trainer, states, text)

    def test_another_epoch_on_each_rank(self, comm: Communicator) -> None:
        states = [saved(trainer_of(part(rank, 2), shuffle=False)) for rank in range(2)]
        states[1][f'{PREFIX}epoch'] = np.asarray(3)
        trainer = trainer_of(part(comm.rank, comm.size))
        self.refused(comm, trainer, states, 'another epoch on each rank, expected one but got [0, ')

    @pytest.mark.parametrize('whose', ['other', 'none'])
    def test_other_data_on_one_rank(self, comm: Communicator, whose: str) -> None:
        """All are told, since none may load."""
        states, _ = stopped(2, 1, shuffle=False)
        data = part(comm.rank, comm.size)
        if comm.rank == comm.size - 1:
            data = part(0, 1, 'others') if whose == 'other' else np.arange(N)
        got = 'others' if whose == 'other' else 'data that mnx did not scatter'
        text = f"of iterator 'main' are dealt out in another way, expected twelve but got {got}."
        self.refused(comm, trainer_of(data), states, text)

    def test_data_that_were_not_scattered_then(self, comm: Communicator) -> None:
        states = [saved(trainer_of(list(range(5)), shuffle=False))] * 2
        trainer = trainer_of(part(comm.rank, comm.size))
        self.refused(comm, trainer, states, 'expected data that mnx did not scatter but got twelve')


@alone
def test_an_order_under_the_name_of_another_iterator() -> None:
    """MultithreadIterator calls it by another name, and saves None as an object."""
    for shuffle, expected in ((False, [2, 3, 4, 5]), (True, None)):
        trainer = trainer_of(part(0, 2))
        iterator = MultithreadIterator(part(0, 2), 1, n_threads=1, shuffle=shuffle)
        trainer.updater._iterators['main'] = iterator
        seen = take(trainer, 2)
        left = saved(trainer)[LEFT].tolist()
        iterator.finalize()
        assert left == (expected or sorted({*range(6)} - {*seen}))


@alone
@pytest.mark.parametrize(
    ('then', 'now', 'words'),
    [
        ('twelve', 'twelve', None),
        ('twelve', 'other', 'had twelve and now has other, so'),
        ('twelve', None, 'had twelve and now has data that mnx did not scatter, so'),
        (None, 'twelve', None),
    ],
)
def test_other_data_are_told(then: str | None, now: str | None, words: str | None) -> None:
    state = {} if then is None else {WHOLE: np.asarray(then)}
    trainer = trainer_of(list(range(3)) if now is None else part(0, 1, now))
    told = positions.warn_of_other_data(trainer, state)
    assert len(told) == (words is not None)
    if words:
        assert f"iterator 'main' {words}" in told[0]
        assert told[0].endswith('give scatter_dataset a seed')
