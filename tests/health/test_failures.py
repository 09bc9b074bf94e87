from __future__ import annotations

from dataclasses import replace

from mnx.health.failures import (
    Failure,
    all_leave_silently,
    first_of,
    ranges,
    report,
    stamp_after,
)


def failure(
    rank: int, stamp: float, error: str = 'ValueError: a\n', place: str = 'f.py:1'
) -> Failure:
    return Failure(rank, f'host{rank}', stamp, error, place, f'trace of {rank}\n{error}', 1)


def test_first_failure_is_printed_last() -> None:
    text = report([failure(0, 2.0, 'A'), failure(1, 1.0, 'B'), failure(2, 3.0, 'C')], 4)
    assert [text.index(f'trace of {rank}') for rank in (2, 0, 1)] == sorted(
        text.index(f'trace of {rank}') for rank in range(3)
    )
    assert 'rank 1 of 4 on host1 failed, the whole job ends' in text


def test_equal_errors_are_printed_once() -> None:
    text = report([failure(rank, float(rank)) for rank in range(4)], 4)
    assert text.count('trace of') == 1
    assert 'ranks 0-3 of 4 on host0, host1, host2, host3 failed' in text


def test_equal_errors_at_other_places_are_named() -> None:
    text = report([failure(0, 1.0), failure(1, 2.0, place='g.py:5'), failure(2, 3.0)], 3)
    assert text.count('trace of') == 1
    assert 'the same at g.py:5 (rank 1)' in text


def test_many_different_errors_are_cut() -> None:
    text = report([failure(rank, float(rank), f'E{rank}') for rank in range(100)], 100)
    assert text.count('trace of') == 8
    assert '92 more errors' in text
    assert text.rstrip().endswith('E0')


def test_equal_stamps_go_by_rank() -> None:
    failures = [failure(2, 1.0), failure(1, 1.0)]
    assert first_of(failures).rank == first_of(reversed(failures)).rank == 1


def test_cause_comes_before_effect_whatever_the_clocks_say() -> None:
    cause = failure(1, 500.0)
    assert stamp_after(100.0, [cause]) > cause.stamp
    assert stamp_after(900.0, [cause]) == 900.0
    assert stamp_after(100.0, []) == 100.0


def test_encoding_goes_there_and_back() -> None:
    sent = failure(3, 1.25, 'ValueError: schön\n')
    assert Failure.decode(sent.encode()) == sent


def test_long_text_keeps_both_ends() -> None:
    sent = replace(failure(0, 1.0), text='first ' + 'x' * 10**6 + ' last')
    received = Failure.decode(sent.encode()).text
    assert len(received) < 20_000
    assert received.startswith('first')
    assert received.endswith('last')


def test_silent_exits_of_all_ranks() -> None:
    exits = [replace(failure(rank, 1.0), is_silent_exit=True) for rank in range(3)]
    assert all_leave_silently(exits, 3)
    assert not all_leave_silently(exits, 4)
    assert not all_leave_silently([*exits[:2], failure(2, 1.0)], 3)


def test_ranges() -> None:
    assert ranges([]) == ''
    assert ranges([4]) == '4'
    assert ranges([7, 1, 0, 2, 5, 4]) == '0-2, 4-5, 7'
