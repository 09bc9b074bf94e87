"""What ranks say that disagree: pure functions of their reports."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from mnx.errors import DtypeError, MismatchError, RemoteError
from mnx.health.meeting import Report, oddities, table, verdict


def report(rank: int, call: str = 'bcast root=0', sequence: int = 1, **given: object) -> Report:
    values = {'error': None, 'error_type': None, 'details': [], **given}
    return Report(rank=rank, sequence=sequence, call=call, site=f'train.py:{10 + rank}', **values)


# --- table ---------------------------------------------------------------------------------------


def marked(reports: list[Report]) -> list[int]:
    lines = table(reports).splitlines()
    assert len(lines) == len(reports)
    return [rank for rank, line in enumerate(lines) if line.startswith('>')]


def test_a_line_says_rank_number_call_and_place() -> None:
    lines = table([report(0, 'bcast', 7), report(1, 'allreduce', 8)]).splitlines()
    assert lines[0].split() == ['rank', '0', '#7', 'bcast', 'at', 'train.py:10']
    assert lines[1].split() == ['>', 'rank', '1', '#8', 'allreduce', 'at', 'train.py:11']
    assert lines[0].index(' at ') == lines[1].index(' at ')  # below one another


@given(st.integers(2, 9), st.data())
@settings(derandomize=True, max_examples=40, deadline=None)
def test_the_minority_is_marked(size: int, data: st.DataObject) -> None:
    odd = data.draw(st.sets(st.integers(0, size - 1), max_size=(size - 1) // 2))
    by_call = [report(rank, 'barrier' if rank in odd else 'bcast') for rank in range(size)]
    assert marked(by_call) == sorted(odd)
    by_number = [report(rank, sequence=2 if rank in odd else 3) for rank in range(size)]
    assert marked(by_number) == sorted(odd)


# --- oddities ------------------------------------------------------------------------------------


def test_what_all_bring_is_not_told() -> None:
    assert oddities([report(0, details=['/W', '/b']), report(1, details=['/b', '/W'])]) == []


@given(st.lists(st.sets(st.sampled_from('abcd')), min_size=1, max_size=4))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_what_some_bring_is_told_with_their_ranks(brought: list[set[str]]) -> None:
    told = oddities([report(rank, details=sorted(names)) for rank, names in enumerate(brought)])
    holders = {name: [r for r, own in enumerate(brought) if name in own] for name in 'abcd'}
    expected = {
        f'only on rank(s) {", ".join(map(str, ranks))}: {name}'
        for name, ranks in holders.items()
        if 0 < len(ranks) < len(brought)
    }
    assert (set(told), len(told)) == (expected, len(expected))


# --- verdict -------------------------------------------------------------------------------------


def test_if_nobody_failed_the_ranks_disagree() -> None:
    reports = [report(0), report(1, 'bcast root=1'), report(2, details=['/b'])]
    error = verdict(reports)
    assert type(error) is MismatchError
    first, *lines = str(error).splitlines()
    assert first == 'the ranks do not make the same call.'
    assert lines == [*table(reports).splitlines(), 'only on rank(s) 2: /b']


def test_an_error_of_mnx_is_raised_as_it_is() -> None:
    failed = report(1, error='send: no array (rank 1 of 3). Pass one.', error_type=DtypeError)
    error = verdict([report(0, 'barrier'), failed, report(2, 'something else')])
    assert type(error) is DtypeError
    assert str(error) == 'send: no array (rank 1 of 3). Pass one.'


def test_another_error_is_told_with_its_rank() -> None:
    error = verdict([report(0), report(1), report(2, 'load', error='OSError: no such disk')])
    assert type(error) is RemoteError
    assert str(error) == 'load: rank 2 of 3 failed: OSError: no such disk'


@pytest.mark.parametrize('first', [0, 1])
def test_the_lowest_rank_that_failed_is_heard(first: int) -> None:
    reports = [
        report(rank, error=f'rank {rank} said', error_type=DtypeError) if rank >= first
        else report(rank)
        for rank in range(3)
    ]  # fmt: skip
    assert str(verdict(reports)) == f'rank {first} said'


def test_a_rank_in_another_call_is_not_said_to_lack_parameters() -> None:
    reports = [report(0, 'f', details=['/W float32(3,)']), report(1, 'finalize', details=None)]
    assert oddities(reports) == []
