"""A job of which some rank never comes to the first communicator ends, too.

Until then there is no watchdog, and in MPI_Init a waiting rank keeps Python's lock: no thread of
Python could look. What needs no lock does it:

    MNX_TIMEOUT seconds     a C thread of `faulthandler` prints where this rank is
    GRACE seconds later     an alarm of the system ends it, and by that the launcher ends the job

`faulthandler` writes no words but names of functions; hence the name of the one that waits.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, TypeVar

from mnx.errors import ArgumentError
from mnx.health.watchdog import timeout_of
from mnx.transports import launch
from mnx.transports.launch import Launch

GRACE = 2.0  # seconds in which all ranks that wait can say so

R = TypeVar('R')

_is_over = False


def limited(meet: Callable[[], R], environ: Mapping[str, str] = os.environ) -> R:
    """Return ``meet()``, in which this rank waits for all others for the first time."""
    global _is_over
    launched = launch.detect(environ)
    if launched is None or launched.size == 1 or _is_over:
        return meet()
    with _limit(_timeout_of(environ)):
        met: R = _named(_wait, _message(launched))(meet)
    _is_over = True
    return met


def _timeout_of(environ: Mapping[str, str]) -> float:
    try:
        return timeout_of(environ)
    except ArgumentError:  # all ranks are told of it when they have met
        return 0.0


@contextlib.contextmanager
def _limit(timeout: float) -> Iterator[None]:
    previous = signal.getsignal(signal.SIGALRM)  # None: that of a library
    if not timeout or previous is None or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield  # also if the program has an alarm of its own
        return
    with contextlib.suppress(Exception):  # not the main thread; a standard error that is no file
        faulthandler.dump_traceback_later(timeout)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout + GRACE)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(Exception):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def _wait(meet: Callable[[], R]) -> R:
    return meet()


def _message(launched: Launch) -> str:
    return (
        f'[mnx] rank {launched.rank} of {launched.size} on {platform.node()}, which waits for all '
        'ranks to call create_communicator: look at those that do not say this. The job ends; '
        'MNX_TIMEOUT (seconds) was the limit, 0 is none'
    )


def _named(function: Any, name: str) -> Any:
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__)
