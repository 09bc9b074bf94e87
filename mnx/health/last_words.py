"""How a rank that ends the job gets its report out first."""

from __future__ import annotations

import array
import contextlib
import os
import sys
import time
from typing import NoReturn, Protocol, TextIO

FORWARDING = 0.1  # seconds a launcher is given to pass the report on


class Aborts(Protocol):
    """What can end the job."""

    def abort(self, code: int) -> None:
        """End all processes of the job with exit status `code`."""


def say(text: str) -> None:
    """Write `text` to standard error, and return when the launcher has read it."""
    if sys.stderr is not None:
        with contextlib.suppress(Exception):
            sys.stderr.write(text)
    flush()
    _wait_until_read(sys.stderr)
    time.sleep(FORWARDING)


def abort(channel: Aborts, code: int) -> NoReturn:
    """End the job; MPI may return from the call before the launcher has ended this process."""
    with contextlib.suppress(Exception):
        channel.abort(code)
        time.sleep(1)
    os._exit(code)


def flush() -> None:
    """Write out what waits in the buffers of standard output and error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _wait_until_read(stream: TextIO, longest: float = 2.0) -> None:
    """Wait until the launcher has taken the report out of the pipe: an abort empties it."""
    with contextlib.suppress(Exception):
        import fcntl
        import termios

        left, end = array.array('i', [1]), time.monotonic() + longest
        while left[0] and time.monotonic() < end:
            fcntl.ioctl(stream.fileno(), termios.FIONREAD, left)
            time.sleep(0.005)
