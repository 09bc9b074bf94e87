"""What ranks tell one another when a job stands still, and the one report of it. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from mnx.health.failures import ranges

WAITS, ELSEWHERE, ENDED, NO_ANSWER = 'waits', 'elsewhere', 'has ended', 'no answer'


@dataclass(frozen=True)
class State:
    """What one rank does.

    Attributes
    ----------
    rank : int
        Who.
    kind : str
        `WAITS` for other ranks, is `ELSEWHERE`, or `ENDED` its program; `NO_ANSWER` stands in the
        report for those of whom nothing is known.
    call, site : str
        In which function, at which line.
    seconds : float
        How long it has waited.
    is_overdue : bool
        Whether that is longer than it should.
    """

    rank: int
    kind: str
    call: str = ''
    site: str = ''
    seconds: float = 0.0
    is_overdue: bool = False

    def encode(self, *, asks: bool) -> bytes:
        """Return the state as bytes, with the question for the receiver's or without."""
        return json.dumps([asks, asdict(self)]).encode()

    @staticmethod
    def decode(notice: bytes) -> tuple[State, bool]:
        """Return what `encode` made `notice` of."""
        asks, fields = json.loads(notice)
        return State(**fields), asks


def report(known: Iterable[State], hosts: Mapping[int, str], timeout: float, job_size: int) -> str:
    """Return what is printed of a job that stands still.

    Parameters
    ----------
    known : iterable of State
        Of the ranks that answered.
    hosts : dict of int to str
        The host of each rank that could have answered.
    timeout : float
        Seconds after which a rank calls it a standstill.
    job_size : int
        Number of ranks of the job; those without a host are not mentioned.
    """
    states = {state.rank: state for state in known}
    everyone = [states.get(rank, State(rank, NO_ANSWER)) for rank in sorted(hosts)]
    odd, reasons = verdict(everyone)
    part = f' among {_who(hosts)}' if len(hosts) < job_size else ''
    lines = [f'no progress for {timeout:g} s{part}, the whole job of {job_size} ranks ends:']
    lines += _table(everyone, odd, hosts)
    lines += reasons
    lines.append(
        f'If they were healthy but slow: MNX_TIMEOUT={timeout:g} (seconds) was the limit, '
        '0 is none.'
    )
    return '\n[mnx] ' + '\n'.join(lines) + '\n'


def verdict(everyone: Sequence[State]) -> tuple[set[int], list[str]]:
    """Return the ranks at which to look first, and a sentence on each sort of them.

    >>> verdict([State(0, WAITS), State(1, ELSEWHERE), State(2, WAITS)])
    ({1}, ['Others wait for rank 1 to come: look at that line.'])
    """
    odd, reasons = set(), []
    for kind, reason in _REASONS.items():
        ranks = [state.rank for state in everyone if state.kind == kind]
        if ranks:
            odd.update(ranks)
            reasons.append(reason.format(_who(ranks)))
    return (odd, reasons) if odd else _among_waiting(everyone)


_REASONS = {
    NO_ANSWER: 'No answer from {}: stopped, swapped out, host gone, or busy in code that holds the '
    'GIL.',
    ENDED: 'Others wait, but the program has ended on {}: all ranks must make the same calls.',
    ELSEWHERE: 'Others wait for {} to come: look at that line.',
}


def _among_waiting(everyone: Sequence[State]) -> tuple[set[int], list[str]]:
    groups = sorted(_same_places(everyone), key=len, reverse=True)
    if len(groups) == 1:
        return set(), ['All wait at the same place: each recv needs a send, from the right rank.']
    advice = 'All ranks of a communicator must make the same calls, in the same order.'
    if len(groups[0]) == len(groups[1]):
        return set(), [f'They wait for one another at different places. {advice}']
    odd = {state.rank for group in groups[1:] for state in group}
    return odd, [f'Look at {_who(odd)}: others wait at another place. {advice}']


def _same_places(states: Iterable[State]) -> list[list[State]]:
    """Return groups of ranks that do the same, in the order of their first ranks."""
    groups: dict[tuple[str, str, str], list[State]] = {}
    for state in states:
        groups.setdefault((state.kind, state.call, state.site), []).append(state)
    return list(groups.values())


def _table(everyone: Sequence[State], odd: set[int], hosts: Mapping[int, str]) -> list[str]:
    """Return aligned lines, one for all ranks that do the same, the odd ones marked."""
    groups = _same_places(everyone)
    rows = [('rank', 'host', 'state', 'seconds', 'call', 'line')]
    rows += [_row(group, hosts) for group in groups]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    marks = [' ', *('>' if group[0].rank in odd else ' ' for group in groups)]
    return [
        f'{mark} ' + '  '.join(f'{c:{w}}' for c, w in zip(row, widths, strict=True)).rstrip()
        for mark, row in zip(marks, rows, strict=True)
    ]


def _row(group: Sequence[State], hosts: Mapping[int, str]) -> tuple[str, str, str, str, str, str]:
    first = group[0]
    names = sorted({hosts[state.rank] for state in group})
    where = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
    longest = max(state.seconds for state in group)
    seconds = f'{longest:.0f}' if first.kind == WAITS else ''
    ranks = ranges(state.rank for state in group)
    return ranks, where, first.kind, seconds, first.call, first.site


def _who(ranks: Iterable[int]) -> str:
    ranks = sorted(ranks)
    return f'rank {ranks[0]}' if len(ranks) == 1 else f'ranks {ranges(ranks)}'
