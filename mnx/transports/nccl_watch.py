"""Who notices that a collective on a GPU will never end?

A program that waits for a GPU cannot look after itself, and NCCL's kernels wait for a lost peer for
ever. So a thread looks, once in a while, whether NCCL reports an error or an operation takes longer
than it may. It then aborts NCCL's communicators, by which the kernels end and the program wakes
up; the next operation raises what was found.

References: NCCL user guide, "Fault tolerance" (ncclCommGetAsyncError, ncclCommAbort).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mnx.errors import TransportError

PERIOD_S = 1.0


class Event(Protocol):
    """A mark in a GPU's queue of work."""

    @property
    def done(self) -> bool:
        """Whether all work before the mark has ended."""


class Handle(Protocol):
    """What is asked of an NCCL communicator."""

    def check_async_error(self) -> None:
        """Raise what went wrong since."""

    def abort(self) -> None:
        """End its operations and free it, without the other ranks."""


@dataclass
class _Operation:
    name: str
    event: Event
    started: float


class Watch:
    """Watches the operations of some NCCL communicators that share their fate.

    Parameters
    ----------
    limit_s : float
        How long an operation may take after the one before it has ended; 0: for ever.
    clock : callable
        Returns seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._handles: list[Handle] = []
        self._running: deque[_Operation] = deque()
        self._progress = 0.0  # when an operation was last seen to have ended
        self._failure: str | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, handle: Handle, prepare: Callable[[], None] = lambda: None) -> None:
        """Watch this communicator, too; `prepare` is called once in the thread that watches."""
        self._handles.append(handle)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._watch, args=(prepare,), name='mnx-nccl-watch', daemon=True
            )
            self._thread.start()

    def started(self, name: str, event: Event) -> None:
        """Watch an operation, which ends when `event` is done."""
        self._running.append(_Operation(name, event, self._clock()))

    def check(self) -> None:
        """Raise `TransportError` if something was found."""
        if self._failure is not None:
            raise TransportError(self._failure)

    def look(self) -> None:
        """Look once: forget what has ended, and abort all if something is wrong."""
        while self._running and self._running[0].event.done:
            self._running.popleft()
            self._progress = self._clock()
        found = self._error() or self._overdue()
        if found is not None and self._failure is None:
            self._failure = found
            for handle in self._handles:
                handle.abort()

    def stop(self) -> bool:
        """Stop watching; return whether all was well."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        return self._failure is None

    def _watch(self, prepare: Callable[[], None]) -> None:
        try:
            prepare()
            while not self._stopped.wait(PERIOD_S) and self._failure is None:
                self.look()
        except Exception as error:  # of CUDA, say: nothing can be trusted any more
            self._failure = self._failure or f'NCCL cannot be watched: {error!r}.'

    def _error(self) -> str | None:
        for handle in self._handles:
            try:
                handle.check_async_error()
            except Exception as error:
                return f'NCCL reports {error}. NCCL_DEBUG=INFO shows where; look for a lost rank.'
        return None

    def _overdue(self) -> str | None:
        if not self._running or not self._limit_s:
            return None
        oldest = self._running[0]
        if self._clock() - max(oldest.started, self._progress) <= self._limit_s:
            return None
        return (
            f'NCCL {oldest.name} has not ended for {self._limit_s:g} s and was aborted: some rank '
            'does not take part in it. Look for the rank that stopped, or set MNX_NCCL_TIMEOUT_S.'
        )
