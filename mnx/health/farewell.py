"""A rank that ends its program while others wait for it in a collective says so.

    rank 0   allreduce #8          ─┐  meet    ┌─ an error: rank 1 is at the end of its program
    rank 1   its program has ended ─┘          └─ leaves, as it was about to

Without it the others would wait until the watchdog ends them. The word a rank leaves is that of
`finalize`, so that ranks need not agree on who calls it. With ``MNX_CHECK=0`` there is no meeting
and no farewell.

A rank may be in many communicators, and can meet the others in one at a time only: where they wait.
They cannot say that themselves, but a thread of theirs can, the *herald* (the watchdog)::

    rank 1   its program has ended ──1 "I leave"──►  the herald of rank 0, who waits in a split
             meets them there      ◄──2 "come to #8 of that split"──┘

When all ranks have come to their ends, they meet in all communicators, in the order in which these
were made. Without a herald they do so at once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import time
from typing import Protocol

import numpy as np

from mnx.errors import MnxError
from mnx.health.meeting import Meetings, cargo_of
from mnx.transports import emergency
from mnx.transports.base import Pending

LAST_CALL = 'finalize'

_STAYS, _LEAVES = cargo_of(0), cargo_of(1)

Place = tuple[int, int]  # the key of a communicator, and the number of a meeting


class Herald(Protocol):
    """Who tells other ranks that this one leaves, and hears where they wait."""

    def leave(self) -> Pending:
        """Begin; what is returned ends when all ranks leave."""

    def wanted(self) -> list[Place]:
        """Return where others wait."""


_open: list[Meetings] = []  # in the order in which all of their ranks made them
_owner = 0
_leaving = False
_herald: Herald | None = None


class Debt:
    """The farewell that a communicator is owed, until it is freed."""

    def __init__(self, meetings: Meetings) -> None:
        self._meetings = meetings

    def close(self) -> None:
        """Owe no farewell any more."""
        if self._meetings in _open:
            _open.remove(self._meetings)


def owe(meetings: Meetings) -> Debt:
    """Let this rank say farewell at its end, unless it has been said by then. Collective."""
    global _owner
    if meetings.checks and meetings.control.size > 1:
        if _owner != os.getpid():
            _owner = os.getpid()
            atexit.register(_say)
        key = np.array([secrets.randbits(62)], np.int64)
        meetings.control.broadcast(key, 0)
        meetings.key = int(key[0])
        _open.append(meetings)
    return Debt(meetings)


def say_to(meetings: Meetings) -> bool:
    """Meet the others to finalize a communicator; return whether all are there to free it.

    A rank at the end of its program frees nothing any more, and the others cannot do so alone.
    """
    somebody_leaves = _meet(meetings, _STAYS)
    Debt(meetings).close()
    return not somebody_leaves


def is_leaving() -> bool:
    """Tell whether this rank's program has ended."""
    return _leaving


def employ(herald: Herald) -> None:
    """Let `herald` speak for this rank. All ranks do so, or none."""
    global _herald
    _herald = herald


def waits_at() -> list[Place]:
    """Return the meetings in which this rank waits for others. For the herald's thread."""
    return [(m.key, m.waits_at) for m in _open.copy() if m.waits_at]


def _say() -> None:
    """Meet the others once more, in each communicator that is still open."""
    global _leaving
    if _owner != os.getpid() or not emergency.is_usable():
        return
    _leaving = True
    if _herald is not None:
        _go_where_others_wait(_herald)
    with contextlib.suppress(MnxError):  # the others tell of it, where they wait
        while _open:
            _meet(_open.pop(0), _LEAVES, 'the end of its program')


def _go_where_others_wait(herald: Herald) -> None:
    """Until all ranks leave: meet those who wait for this one, as often as they do."""
    all_leave, pause = herald.leave(), 0.0
    while not all_leave.test():
        wanted = dict(herald.wanted())
        for meetings in [m for m in _open if wanted.get(m.key, 0) > m.sequence]:
            # who catches the error goes on, and may come again
            with contextlib.suppress(MnxError):
                _meet(meetings, _LEAVES, 'the end of its program')
                _open.remove(meetings)
        time.sleep(pause)
        pause = min(pause + 0.001, 0.05)


def _meet(meetings: Meetings, cargo: bytes, site: str | None = None) -> bool:
    """Meet for the last time; return whether any rank is at the end of its program."""
    if not meetings.checks:
        return False
    with meetings(LAST_CALL) as meeting:
        meeting.site = site
        meeting.carry(cargo)
    return bool(meeting.cargo[0])
