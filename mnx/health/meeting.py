"""Every rank raises, or none: the one place that all collectives pass through.

Plain MPI adds up float32 and int32 without a word, and waits for ever when one rank raises before
a collective and the others enter it. So all ranks meet first::

    rank 0  allreduce #7 float32 (3,)  ─┐                 ┌─ all equal: the collective begins
    rank 1  allreduce #7 float32 (3,)  ─┼─► max, min of ──┤
    rank 2  allreduce #7 int32   (3,)  ─┘   5 numbers     └─ not: tell all, every rank raises

The numbers are [failed?, sequence, digest, -sequence, -digest]; the largest of -x is minus the
smallest x, so one small all-reduce tells whether all are equal. Only if they are not, the ranks
exchange words: what each one called, from which line, and what it failed of. Behind the numbers is
room for cargo, [x, -x], so that what must be known before the collective needs no round of its own.

A meeting may stand inside another. Where one fails, ranks may be at different depths: one has come
to the end of the outer block with an error, the others still are inside. Then the outer one has
taken place on that rank, and on the others its end raises without meeting again::

    rank 0  outer ── inner ── the error of rank 1 ── the end of outer: the same error
    rank 1  outer ── error ─┘ (they meet here)

Where all ranks are inside the same blocks, their ends meet as ever, since the program may catch
the error on one rank and not on another.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np

from mnx.arrays import Array
from mnx.errors import MismatchError, MnxError, RemoteError
from mnx.transports import pickles
from mnx.transports.base import Transport

_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
_NUMBERS = struct.Struct('5q')

CARGO = 16  # words
_LENGTH = _NUMBERS.size + 2 * 8 * CARGO


def cargo_of(*words: int) -> bytes:
    """Return up to 16 words as what `Meeting.carry` takes: zeros behind them, and -x behind x."""
    given = np.zeros(CARGO, np.int64)
    given[: len(words)] = words
    return given.tobytes() + (-given).tobytes()


_NOTHING = np.full(2 * CARGO, -2, np.int64).tobytes()  # less than the first word of any cargo


@dataclass
class Report:
    """What one rank tells the others when they disagree."""

    rank: int
    sequence: int
    call: str
    site: str
    error: str | None
    error_type: type[MnxError] | None
    details: list[str] | None
    blocks: list[int] = field(default_factory=list)  # the meetings that this one is inside of


def checks_wanted() -> bool:
    """Return whether `MNX_CHECK` lets ranks compare what they call."""
    return os.environ.get('MNX_CHECK', '1') != '0'


class Meetings:
    """Numbers the meetings of one communicator, so that a skipped one shows."""

    def __init__(self, control: Transport) -> None:
        self.control = control
        self.sequence = 0
        self.memory = bytearray(_LENGTH)
        self.words = np.frombuffer(self.memory, np.int64)
        self.cargo: Array = self.words[_NUMBERS.size // 8 :][:CARGO]
        self.checks = checks_wanted()
        self.blocks: list[Meeting] = []  # that this rank is inside of, the outermost first
        self.key = 0  # the same on all ranks, unlike that of any other communicator
        self.waits_at = 0  # the number of the meeting to which the others have yet to come
        self.about = ''  # what the calls of the moment belong to, as the backward pass of another

    def __call__(self, call: str, *, optional: bool = False) -> Meeting:
        """Return the next meeting; an optional one does not take place if checks are off."""
        self.sequence += 1
        return Meeting(self, call + self.about, takes_place=self.checks or not optional)


class Meeting:
    """A block in which this rank checks its part of a collective; at its end all ranks compare.

    Whatever is raised inside on one rank is raised on all: there as it is, elsewhere as an error
    of the same class (or as `RemoteError`, if it is not one of mnx's own).

    Attributes
    ----------
    site : str or None
        Where this rank is, if that is no line of the user's.
    takes_place : bool
        Whether the ranks compare anything, and so wait for one another.
    cargo : array
        After it: the largest of what the ranks carried, word by word, shape (16,), int64. The next
        meeting has its own there.
    """

    __slots__ = (
        '_call',
        '_cargo',
        '_detail',
        '_digest',
        '_meetings',
        '_sequence',
        '_settled',
        'cargo',
        'site',
        'takes_place',
    )

    def __init__(self, meetings: Meetings, call: str, takes_place: bool = True) -> None:
        self.site: str | None = None
        self.cargo = meetings.cargo
        self._meetings = meetings
        self.takes_place = takes_place
        self._sequence = meetings.sequence
        self._call = call
        self._detail: Callable[[], list[str]] | None = None
        self._cargo = b''
        self._digest: int | None = None
        self._settled: Exception | None = None  # a meeting inside was this one's on another rank

    def bring(self, *facts: object) -> None:
        """Add facts that must be equal on all ranks, such as a dtype and a shape."""
        self._call = ' '.join([self._call, *map(str, facts)])

    def carry(self, cargo: bytes | None) -> None:
        """Bring 16 words, or nothing; then all have the largest of each, until they meet again.

        Takes place even if the comparison does not.
        """
        self._cargo = cargo or _NOTHING

    def all_brought_the_same(self) -> bool:
        """Tell whether every rank's cargo was the same."""
        # the largest of x and of -x are this rank's: there is no other
        return self._meetings.memory.endswith(self._cargo)

    def detail(self, lines: Callable[[], list[str]]) -> None:
        """Say what a digest stands for; `lines` is called only if the ranks disagree."""
        self._detail = lines

    def __enter__(self) -> Meeting:
        if self.takes_place:
            self._meetings.blocks.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.takes_place:
            if error is None:
                self._exchange_cargo()
            return
        self._leave_block()
        if error is not None and not isinstance(error, Exception):
            return  # SystemExit, KeyboardInterrupt
        if self._settled is None and self._all_equal(error is not None):
            return
        shared = self._settled or self._difference(error)
        if error is None:
            raise shared

    def again(self) -> None:
        """Meet with what was brought and carried the last time, when it went well. Collective."""
        self._meetings.sequence += 1
        self._sequence = self._meetings.sequence
        if not self.takes_place:
            self._exchange_cargo()
        elif not self._all_equal():
            raise self._difference(None)

    def _exchange_cargo(self) -> None:
        if self._cargo:
            self._meetings.memory[_NUMBERS.size :] = self._cargo
            self._meetings.control.find_largest(self._meetings.words)

    def _leave_block(self) -> None:
        """Leave this block, and those inside of it that were never left."""
        blocks = self._meetings.blocks
        if blocks and blocks[-1] is self:
            blocks.pop()
        elif self in blocks:
            del blocks[blocks.index(self) :]

    def _all_equal(self, failed: bool = False) -> bool:
        meetings, sequence = self._meetings, self._sequence
        if self._digest is None:
            self._digest = _digest_of(self._call)
        digest = self._digest
        numbers = _NUMBERS.pack(failed, sequence, digest, -sequence, -digest)
        brought = numbers + self._cargo
        meetings.memory[: len(brought)] = brought
        meetings.waits_at = sequence
        meetings.control.find_largest(meetings.words)
        meetings.waits_at = 0
        if not failed and meetings.memory.startswith(numbers):
            return True
        # in step again after an error that kept some ranks from meetings inside this one
        meetings.sequence = max(int(meetings.words[1]), meetings.sequence)
        return False

    def _difference(self, error: Exception | None) -> Exception:
        """Tell the others what is wrong; return the own error, or what to raise."""
        reports = pickles.all_gather(self._meetings.control, self._report(error))
        shared = error or verdict(reports)
        common = set.intersection(*(set(report.blocks) for report in reports))
        for block in self._meetings.blocks:
            if block._sequence not in common:
                block._settled = block._settled or shared
        return shared

    def _report(self, error: Exception | None) -> Report:
        own = public_class(error)
        text = None if error is None else str(error) if own else f'{type(error).__name__}: {error}'
        meetings = self._meetings
        return Report(
            meetings.control.rank,
            self._sequence,
            self._call,
            self.site or call_site(),
            text,
            own,
            self._detail and self._detail(),
            [block._sequence for block in meetings.blocks],
        )


@functools.lru_cache(256)  # the same calls come again in every step
def _digest_of(call: str) -> int:
    return zlib.crc32(call.encode())


def public_class(error: BaseException | None) -> type[MnxError] | None:
    """Return the class by which other ranks can raise the error: mnx's own, or none."""
    for cls in type(error).__mro__:
        if issubclass(cls, MnxError) and cls.__module__.startswith('mnx.'):
            return cls
    return None


def verdict(reports: list[Report]) -> MnxError:
    """Return the error that a rank raises which did not fail itself."""
    failed = [r for r in reports if r.error is not None]
    if not failed:
        lines = ['the ranks do not make the same call.', table(reports), *oddities(reports)]
        return MismatchError('\n'.join(lines))
    first = failed[0]
    if first.error_type is not None:
        return first.error_type(first.error)
    return RemoteError(f'{first.call}: rank {first.rank} of {len(reports)} failed: {first.error}')


def table(reports: list[Report]) -> str:
    """Return one line for each rank, those that differ from the majority marked.

    >>> calls = ['bcast root=0', 'bcast root=1', 'bcast root=0']
    >>> print(table([Report(rank, 1, call, 'a.py:3', None, None, [])
    ...              for rank, call in enumerate(calls)]))
      rank 0  #1  bcast root=0  at a.py:3
    > rank 1  #1  bcast root=1  at a.py:3
      rank 2  #1  bcast root=0  at a.py:3
    """
    calls = [(r.sequence, r.call) for r in reports]
    usual = max(calls, key=calls.count)
    width = max(len(r.call) for r in reports)
    return '\n'.join(
        f'{" " if call == usual else ">"} rank {r.rank}  #{r.sequence}  '
        f'{r.call:{width}}  at {r.site}'
        for r, call in zip(reports, calls, strict=True)
    )


def oddities(reports: list[Report]) -> list[str]:
    """Return what some ranks brought and others did not, such as a parameter of its own.

    Nothing if some brought no such list: they are in another call, and have no fewer parameters.

    >>> oddities([Report(0, 1, 'f', 'a.py:3', None, None, ['/W float32(3,)']),
    ...           Report(1, 1, 'f', 'a.py:3', None, None, ['/W float32(3,)', '/b float32(1,)'])])
    ['only on rank(s) 1: /b float32(1,)']
    """
    if any(report.details is None for report in reports):
        return []
    holders: dict[str, list[int]] = {}
    for report in reports:
        for detail in report.details or ():
            holders.setdefault(detail, []).append(report.rank)
    return [
        f'only on rank(s) {", ".join(map(str, ranks))}: {detail}'
        for detail, ranks in holders.items()
        if len(ranks) < len(reports)
    ]


def call_site() -> str:
    """Return ``file:line`` of the innermost frame that is neither mnx's nor Chainer's."""
    frame = sys._getframe()
    while frame.f_back is not None and _is_of_a_library(frame):
        frame = frame.f_back
    return f'{frame.f_code.co_filename}:{frame.f_lineno}'


def _is_of_a_library(frame: FrameType) -> bool:
    # Chainer runs backward, where mnx.functions communicate
    is_chainer = str(frame.f_globals.get('__name__')).startswith('chainer.')
    return is_chainer or frame.f_code.co_filename.startswith(_PACKAGE)
