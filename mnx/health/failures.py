"""What failing ranks tell one another, and the one report that is made of it. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

_LONGEST_TEXT = 16_000  # characters of a traceback that travel to other ranks
_MOST_ERRORS = 8  # different errors that one report shows


@dataclass(frozen=True)
class Failure:
    """The end of one rank.

    Attributes
    ----------
    rank : int
        Who failed.
    host : str
        Where.
    stamp : float
        When: seconds since the epoch, corrected so that effects come after their causes.
    error : str
        Type and message, as in a traceback's last line; equal for the same error.
    place : str
        File, line and function where it was raised.
    text : str
        The whole traceback.
    code : int
        The exit status that the process would have had.
    is_silent_exit : bool
        True for `sys.exit(3)`, which Python lets pass without a word.
    """

    rank: int
    host: str
    stamp: float
    error: str
    place: str
    text: str
    code: int
    is_silent_exit: bool = False

    def encode(self) -> bytes:
        """Return the failure as bytes, its text shortened in the middle if it is very long."""
        return json.dumps(asdict(self) | {'text': _shorten(self.text)}).encode()

    @staticmethod
    def decode(notice: bytes) -> Failure:
        """Return the failure that `encode` made `notice` of."""
        return Failure(**json.loads(notice))


def first_of(failures: Iterable[Failure]) -> Failure:
    """Return the failure that came first; every rank that knows the same ones agrees."""
    return min(failures, key=_when)


def stamp_after(now: float, earlier: Iterable[Failure]) -> float:
    """Return `now`, or just after the latest of `earlier` if this clock lags behind theirs."""
    return max([now, *(failure.stamp + 1e-6 for failure in earlier)])


def all_leave_silently(failures: Sequence[Failure], size: int) -> bool:
    """Return whether all ranks call sys.exit(n): then nobody waits, and nobody need be told."""
    return len(failures) == size and all(failure.is_silent_exit for failure in failures)


def report(failures: Iterable[Failure], size: int) -> str:
    """Return what is printed of all failures: each error once, the first to happen last."""
    groups = _same_errors(failures)
    shown = groups[:_MOST_ERRORS]
    lines = []
    if len(shown) < len(groups):
        lines.append(f'\n[mnx] {len(groups) - len(shown)} more errors of other ranks left out\n')
    # from the last to the first: what matters stays on the screen
    for group in reversed(shown):
        lines.append(f'\n[mnx] {_headline(group, size, is_first=group is shown[0])}\n')
        lines.append(group[0].text.rstrip() + '\n')
        lines += [f'[mnx] the same at {place}\n' for place in _other_places(group)]
    return ''.join(lines)


def ranges(ranks: Iterable[int]) -> str:
    """Return ranks in short: ``'0-2, 5'``.

    >>> ranges([2, 5, 0, 1])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ', '.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)


def _when(failure: Failure) -> tuple[float, int]:
    return failure.stamp, failure.rank


def _same_errors(failures: Iterable[Failure]) -> list[list[Failure]]:
    """Return groups of equal errors; groups and members in the order in which they happened."""
    groups: dict[str, list[Failure]] = {}
    for failure in sorted(failures, key=_when):
        groups.setdefault(failure.error, []).append(failure)
    return list(groups.values())


def _headline(group: Sequence[Failure], size: int, *, is_first: bool) -> str:
    ranks = ranges(failure.rank for failure in group)
    hosts = sorted({failure.host for failure in group})
    where = ', '.join(hosts[:4]) + (', ...' if len(hosts) > 4 else '')
    who = f'rank {ranks} of {size}' if len(group) == 1 else f'ranks {ranks} of {size}'
    when = 'failed, the whole job ends' if is_first else 'failed afterwards'
    return f'{who} on {where} {when}:'


def _other_places(group: Sequence[Failure]) -> list[str]:
    ranks: dict[str, list[int]] = {}
    for failure in group:
        if failure.place != group[0].place:
            ranks.setdefault(failure.place, []).append(failure.rank)
    return [f'{place} (rank {ranges(who)})' for place, who in ranks.items()]


def _shorten(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f'{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}'
