"""A rank under `mnx run` gets a parent, the `watcher`, which can tell if the system kills it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from mnx.transports import launch

WATCHER = Path(__file__).with_name('watcher.py')
MARK = 'MNX_WATCHED_BY'  # in a rank's environment until it starts: the process that watches it
PR_SET_PDEATHSIG = 1


def begin() -> None:
    """Start this command again as a rank, and become its watcher; in the rank, go on.

    Without a launcher, and where there is no Linux, go on at once. The process that the launcher
    has started must be the watcher, so the rank is a new one.
    """
    launched = launch.detect(os.environ)
    parent = os.environ.pop(MARK, None)
    if parent is not None:
        _end_with(int(parent))
    elif launched is not None and sys.platform == 'linux':
        command = [sys.executable, *sys.orig_argv[1:]]
        rank = os.posix_spawn(command[0], command, {**os.environ, MARK: str(os.getpid())})
        who = f'rank {launched.rank} of {launched.size}'
        os.execv(sys.executable, [sys.executable, '-IS', str(WATCHER), str(rank), who])


def _end_with(parent: int) -> None:
    """Let the system end this process when its parent ends, which the launcher may kill."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)
