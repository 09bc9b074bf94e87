"""The choice between ways that give the same bits."""

from __future__ import annotations

import itertools

from mnx.communicators.trials import EVERY, PATIENCE, TRIALS, WARM_UP, Trials
from tests.launching import alone

pytestmark = alone


def go(trials: Trials, seconds: list[float], calls: int) -> list[int]:
    """Return which way was taken in each call, if they take so long."""
    taken = []
    for _ in range(calls):
        way, is_timed = trials.choose()
        taken.append(way)
        if is_timed:
            trials.tell(way, seconds[way])
    return taken


def test_each_is_tried_in_turn_and_then_the_quicker_one_is_taken() -> None:
    trials = Trials(2)
    first = go(trials, [2.0, 1.0], 2 * (WARM_UP + TRIALS))
    assert first == [0, 1] * (WARM_UP + TRIALS)
    assert go(trials, [2.0, 1.0], 10) == [1] * 10


def test_what_the_first_calls_take_is_not_counted() -> None:
    trials = Trials(2)
    go(trials, [9.0, 0.1], 2 * WARM_UP)
    go(trials, [1.0, 2.0], 2 * TRIALS)
    assert go(trials, [1.0, 2.0], 5) == [0] * 5


def test_a_single_delay_does_not_count() -> None:
    trials = Trials(2)
    go(trials, [1.0, 2.0], 2 * (WARM_UP + TRIALS))
    go(trials, [100.0, 2.0], EVERY)  # of which one is timed
    assert go(trials, [1.0, 2.0], 5) == [0] * 5


def test_few_calls_are_timed_once_there_is_a_choice() -> None:
    trials = Trials(2)
    go(trials, [1.0, 2.0], 2 * (WARM_UP + TRIALS))
    timed = [trials.choose() == (0, True) for _ in range(5 * EVERY)]
    assert sum(timed) == 5


def test_the_one_that_has_become_slow_is_left() -> None:
    trials = Trials(2)
    go(trials, [1.0, 2.0], 2 * (WARM_UP + TRIALS))
    taken = go(trials, [4.0, 2.0], TRIALS * EVERY + 5)
    left = taken.index(1)
    assert TRIALS * EVERY - EVERY < left <= TRIALS * EVERY
    assert set(taken[left:]) == {1}


def test_the_one_that_has_become_quick_is_found() -> None:
    trials = Trials(2)
    go(trials, [1.0, 2.0], 2 * (WARM_UP + TRIALS))
    taken = go(trials, [1.0, 0.5], 3 * PATIENCE)
    tried = taken.index(1)
    assert 2 * PATIENCE <= tried <= 2 * PATIENCE + 2
    assert set(taken[tried:]) == {1}


def test_trying_again_costs_little_however_slow_the_other_is() -> None:
    for factor in (1.5, 4.0, 50.0):
        trials = Trials(2)
        go(trials, [1.0, factor], 2 * (WARM_UP + TRIALS))
        taken = go(trials, [1.0, factor], 5000)
        lost = taken.count(1) * (factor - 1)
        assert lost <= 5000 / PATIENCE
        assert taken.count(1) >= 5000 / (PATIENCE * factor + 2) - 1


def test_the_choice_follows_from_what_it_was_told() -> None:
    """So ranks that are told the same go the same way."""
    times = [float(3 + (i * 7) % 5) for i in range(200)]
    choices = []
    for trials in (Trials(2), Trials(2)):
        made = []
        for seconds in times:
            way, is_timed = trials.choose()
            made.append(way)
            if is_timed:
                trials.tell(way, seconds)
        choices.append(made)
    assert choices[0] == choices[1]
    assert len(set(itertools.chain(*choices))) == 2
