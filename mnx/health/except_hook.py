"""An uncaught exception on one rank ends the whole job, with one readable report.

    1. a rank fails         it tells all ranks, by messages that need no help of theirs
    2. for GRACE seconds    it collects what other failing ranks tell
    3. the first to fail    prints every error once, its own last, and aborts the job;
       the others           wait for that, and step in if it does not come

Healthy ranks sit in a collective meanwhile and notice nothing. Before the first communicator
there are no messages: then rank 0 goes first, and the others one by one from GRACE seconds on.
`MNX_EXCEPT_HOOK=0` turns this off. Not covered: threads other than the main one, signals, and
processes that the user forks or spawns, which all behave as plain Python.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace

from mnx.health import last_words, uncaught
from mnx.health.failures import Failure, all_leave_silently, first_of, report, stamp_after
from mnx.transports import emergency
from mnx.transports.emergency import EmergencyChannel
from mnx.transports.launch import detect

GRACE = 0.4  # seconds for other failures to become known
PATIENCE = 0.5  # more seconds for the first failing rank to end the job
SPEAKING, ENDING = 5.0, 2.0  # seconds that a report and an abort may take; a busy machine is slow

_installed_in: int | None = None
_all_exit = False


def install(environ: Mapping[str, str] = os.environ) -> None:
    """End the job when the main thread of this rank fails, unless `MNX_EXCEPT_HOOK` is 0.

    Calling it again does nothing.
    """
    global _installed_in
    if _installed_in is not None or environ.get('MNX_EXCEPT_HOOK') == '0':
        return
    _installed_in = os.getpid()
    uncaught.watch(_failed)
    launch = detect(environ)
    if launch is not None and launch.size > 1:
        _buffer_by_line()


def all_exit() -> None:
    """Leave the coming `sys.exit` to Python: every rank calls it, and has nothing to say."""
    global _all_exit
    _all_exit = True


def _buffer_by_line() -> None:
    """Print line by line: what waits in a healthy rank's buffer would be lost by an abort."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.write_through:
        sys.stdout.reconfigure(line_buffering=True)


def _failed(error: BaseException) -> None:
    """Handle an uncaught error; returning leaves the rest to Python."""
    if os.getpid() != _installed_in or _all_exit or not uncaught.has_failed(error):
        return
    if not emergency.is_usable():
        return
    channel = emergency.current() or emergency.bare_mpi() or emergency.bare_launcher(os.environ)
    if channel is not None and channel.size > 1:
        _end_job(channel, error)


def _end_job(channel: EmergencyChannel, error: BaseException) -> None:
    own = _describe(channel, error)
    last_words.flush()
    _end_after(GRACE + PATIENCE + 1.0)
    try:
        failures = (_compare_notes if channel.carries_notices else _go_in_turn)(channel, own)
    except Exception:  # MPI may be what failed: the own traceback must come out
        failures = [own]
    if all_leave_silently(failures, channel.size):
        faulthandler.cancel_dump_traceback_later()
        return
    _end_after(SPEAKING)
    last_words.say(report(failures, channel.size))
    _end_after(ENDING)
    last_words.abort(channel, first_of(failures).code)


def _end_after(seconds: float) -> None:
    """Let a C thread end the process, which needs neither Python nor MPI: either may hang."""
    with contextlib.suppress(Exception):
        faulthandler.dump_traceback_later(seconds, exit=True)


def _describe(channel: EmergencyChannel, error: BaseException) -> Failure:
    stamp = time.time()
    frames = _frames(error)
    return Failure(
        rank=channel.rank,
        host=platform.node(),
        stamp=stamp,
        error=''.join(traceback.format_exception_only(type(error), error)),
        place=f'{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}' if frames else '',
        text=_text_of_exit(error) if isinstance(error, SystemExit) else _text_of(error),
        code=_exit_code(error),
        is_silent_exit=isinstance(error, SystemExit) and isinstance(error.code, int),
    )


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the traceback without Python's own start and without mnx's watch over sys.exit."""
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name not in ('_run_module_as_main', '_run_code')
        and frame.filename != uncaught.__file__
    ]


def _text_of(error: BaseException) -> str:
    """Return what the program's own excepthook prints: rich, IPython or Python itself."""
    printed = io.StringIO()
    with contextlib.suppress(Exception), contextlib.redirect_stderr(printed):
        sys.excepthook(type(error), error, error.__traceback__)
    return printed.getvalue() or ''.join(
        traceback.format_exception(type(error), error, error.__traceback__)
    )


def _text_of_exit(error: SystemExit) -> str:
    """Return a traceback of what no excepthook prints, alone: not what it was raised because of."""
    lines = ['Traceback (most recent call last):\n']
    lines += traceback.format_list(_frames(error))
    lines += traceback.format_exception_only(SystemExit, error)
    return ''.join(lines)


def _exit_code(error: BaseException) -> int:
    code = error.code if isinstance(error, SystemExit) else 1
    return code if isinstance(code, int) and 1 <= code <= 255 else 1


def _compare_notes(channel: EmergencyChannel, own: Failure) -> list[Failure]:
    """Return all failures that become known in time, the own one among them."""
    known = [Failure.decode(notice) for notice in channel.poll()]
    # Clocks of hosts differ; but a failure that is already known here was surely earlier.
    own = replace(own, stamp=stamp_after(own.stamp, known))
    channel.notify(own.encode())
    known.append(own)
    start = time.monotonic()
    while len(known) < channel.size:
        patience = GRACE if first_of(known) is own else GRACE + PATIENCE
        if time.monotonic() - start > patience:
            return known
        time.sleep(0.002)
        known += [Failure.decode(notice) for notice in channel.poll()]
    return _unless_first(channel, known, own, start)


def _unless_first(
    channel: EmergencyChannel, known: list[Failure], own: Failure, start: float
) -> list[Failure]:
    """Wait, when all ranks have failed and another was first, for that one to end the job."""
    if first_of(known) is not own and not all_leave_silently(known, channel.size):
        while time.monotonic() - start < GRACE + PATIENCE:
            channel.poll()  # moves this rank's own notices on
            time.sleep(0.002)
    return known


def _go_in_turn(channel: EmergencyChannel, own: Failure) -> list[Failure]:
    """Return the own failure alone; if all ranks fail, rank 0 has ended the job before others."""
    if channel.rank > 0:
        time.sleep(GRACE * (1 + channel.rank / channel.size))
    if own.is_silent_exit:  # all may leave so, as for a wrong option, and have said why
        return [replace(own, text=f'{own.error.strip()} at {own.place}')]
    return [own]
