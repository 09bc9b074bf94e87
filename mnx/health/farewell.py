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

from mnx.errors import MnxError
from mnx.health.meeting import Meetings
from mnx.transports import emergency

LAST_CALL = 'finalize'

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


def said(meetings: Meetings) -> None:
    """Take note that a communicator was finalized."""
    if meetings in _open:
        _open.remove(meetings)


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
            with _open.pop(0)(LAST_CALL, optional=True) as meeting:
                meeting.site = 'the end of its program'
