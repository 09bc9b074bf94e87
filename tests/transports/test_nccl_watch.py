"""When the watch speaks up: with a clock of its own, and once in its own thread."""

from __future__ import annotations

import threading

import pytest

from mnx.errors import TransportError
from mnx.transports import nccl_watch
from mnx.transports.nccl_watch import Watch


class Event:
    done = False


class Handle:
    """A communicator that may report an error."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.aborted = threading.Event()

    def check_async_error(self) -> None:
        if self.error:
            raise RuntimeError(self.error)

    def abort(self) -> None:
        self.aborted.set()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(nccl_watch, 'PERIOD_S', 1000.0)  # its thread sleeps
    return Clock()


def test_an_operation_that_does_not_end_is_aborted(clock: Clock) -> None:
    watch, handles = Watch(60, clock), [Handle(), Handle()]
    for handle in handles:
        watch.follow(handle)
    watch.started('all_reduce', Event())
    clock.now += 60
    watch.look()
    watch.check()
    clock.now += 1
    watch.look()
    assert all(handle.aborted.is_set() for handle in handles)
    with pytest.raises(TransportError, match='NCCL all_reduce has not ended for 60 s'):
        watch.check()
    assert not watch.stop()


def test_time_counts_from_the_last_progress(clock: Clock) -> None:
    watch, handle, events = Watch(60, clock), Handle(), [Event() for _ in range(5)]
    watch.follow(handle)
    for event in events:
        watch.started('reduce', event)
    for event in events:
        clock.now += 50
        event.done = True
        watch.look()
    clock.now += 1000
    watch.look()
    watch.check()
    assert watch.stop()
    assert not handle.aborted.is_set()


def test_no_limit(clock: Clock) -> None:
    watch = Watch(0, clock)
    watch.follow(Handle())
    watch.started('reduce', Event())
    clock.now += 1e9
    watch.look()
    assert watch.stop()


def test_its_thread_sees_an_error_of_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_watch, 'PERIOD_S', 0.01)
    watch, handle, prepared = Watch(60), Handle(), threading.Event()
    watch.follow(handle, prepared.set)
    assert prepared.wait(20)
    handle.error = 'unhandled system error'
    assert handle.aborted.wait(20)
    assert not watch.stop()
    with pytest.raises(TransportError, match='unhandled system error'):
        watch.check()
