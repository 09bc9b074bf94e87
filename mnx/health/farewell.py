"""A rank that ends its program while others wait for it in a collective says so.

    rank 0   allreduce #8          ─┐  meet    ┌─ an error: rank 1 is at the end of its program
    rank 1   its program has ended ─┘          └─ leaves, as it was about to

Without it the others would wait until the watchdog ends them. The word a rank leaves is that of
`finalize`, so that ranks need not agree on who calls it. With ``MNX_CHECK=0`` there is no meeting
and no farewell.
"""

from __future__ import annotations

import atexit
import contextlib
import os

import numpy as np

from mnx.arrays import Array
from mnx.errors import MnxError
from mnx.health.meeting import CARGO, Meetings
from mnx.transports import emergency

LAST_CALL = 'finalize'

_STAYS, _LEAVES = np.zeros(CARGO, np.int64), np.ones(CARGO, np.int64)

_open: list[Meetings] = []  # in the order in which all of their ranks made them
_owner = 0
_leaving = False


def owe(meetings: Meetings) -> None:
    """Let this rank say farewell at its end, unless it has been said by then."""
    global _owner
    if meetings.control.size == 1:
        return
    if _owner != os.getpid():
        _owner = os.getpid()
        atexit.register(_say)
    _open.append(meetings)


def say_to(meetings: Meetings) -> bool:
    """Meet the others to finalize a communicator; return whether all are there to free it.

    A rank at the end of its program frees nothing any more, and the others cannot do so alone.
    """
    somebody_leaves = _meet(meetings, _STAYS)
    if meetings in _open:
        _open.remove(meetings)
    return not somebody_leaves


def is_leaving() -> bool:
    """Tell whether this rank's program has ended."""
    return _leaving


def _say() -> None:
    """Meet the others once more, in each communicator that is still open."""
    global _leaving
    if _owner != os.getpid() or not emergency.is_usable():
        return
    _leaving = True
    with contextlib.suppress(MnxError):  # the others tell of it, where they wait
        while _open:
            _meet(_open.pop(0), _LEAVES, 'the end of its program')


def _meet(meetings: Meetings, cargo: Array, site: str | None = None) -> bool:
    """Meet for the last time; return whether any rank is at the end of its program."""
    if not meetings.checks:
        return False
    with meetings(LAST_CALL) as meeting:
        meeting.site = site
        meeting.carry(cargo)
    return bool(meeting.cargo[0])
