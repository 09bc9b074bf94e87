"""The parent of a rank: it says by which signal the rank was ended, and then ends as it did.

    launcher ── this process ── the rank

A process that the system kills, mostly for want of memory, can say nothing; and the launcher ends
all others within milliseconds of the death of its child. But its child is this process, which
speaks first. It runs as a script without mnx, in a few megabytes.

    python -IS watcher.py PID 'rank 1 of 4'
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from types import FrameType

PASSED_ON = ('SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGTSTP', 'SIGCONT')
FORWARDING = 0.2  # seconds a launcher is given to pass the report on
HINTS = {
    'SIGKILL': 'Unless it has said why, no memory was left: `dmesg | grep -i "killed process"`',
    'SIGBUS': 'Perhaps /dev/shm is full: `df /dev/shm`',
    'SIGSEGV': 'PYTHONFAULTHANDLER=1 shows where',
}


def watch(pid: int, who: str) -> int:
    """Wait for the rank to end; return its exit status, or end by the signal that has ended it."""
    sent = pass_signals_on(pid)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code not in sent:
        os.write(2, f'{report(-code, pid, who)}\n'.encode())
        time.sleep(FORWARDING)
    end_by(-code)
    return 128 - code


def pass_signals_on(pid: int) -> set[int]:
    """Let signals reach the rank; return the set that will hold those that came."""
    sent = set()

    def pass_on(number: int, _: FrameType | None) -> None:
        sent.add(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for name in PASSED_ON:
        signal.signal(getattr(signal, name), pass_on)
    return sent


def report(number: int, pid: int, who: str) -> str:
    """Return what is said of a rank that a signal has ended.

    >>> report(15, 4711, 'rank 1 of 4').replace(os.uname().nodename, 'node1')
    'mnx: rank 1 of 4 (process 4711 on node1) was ended by SIGTERM.'
    """
    name = signal.Signals(number).name
    hint = f' {HINTS[name]}.' if name in HINTS else ''
    return f'mnx: {who} (process {pid} on {os.uname().nodename}) was ended by {name}.{hint}'


def end_by(number: int) -> None:
    """End this process by a signal, as far as that is possible; leave no second core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # SIGKILL has no other way
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(1)


if __name__ == '__main__':
    sys.exit(watch(int(sys.argv[1]), sys.argv[2]))
