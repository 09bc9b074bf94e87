from __future__ import annotations

import threading

import pytest

from mnx.transports import waiting


class Blocking:
    """Marked methods that look at their own mark."""

    @waiting.waits
    def call(self, value: int, plus: int) -> tuple[int, waiting.Wait | None]:
        return value + plus, waiting.longest()

    @waiting.waits
    def fail(self) -> None:
        raise ValueError('as it is')

    @waiting.waits
    def nested(self) -> waiting.Wait | None:
        self.call(1, 2)
        return waiting.longest()


def test_a_marked_method_waits_while_it_runs() -> None:
    value, wait = Blocking().call(1, 2)
    assert value == 3
    assert wait is not None
    assert wait.thread == threading.get_ident()
    assert waiting.longest() is None


def test_the_mark_goes_with_an_error() -> None:
    with pytest.raises(ValueError, match='as it is'):
        Blocking().fail()
    assert waiting.longest() is None


def test_a_wait_inside_a_wait_is_progress() -> None:
    assert Blocking().nested() is None


def test_the_next_wait_is_another_one() -> None:
    first, second = Blocking().call(0, 0)[1], Blocking().call(0, 0)[1]
    assert first != second


def test_longest_of_two_threads() -> None:
    release, began = threading.Event(), threading.Event()

    @waiting.waits
    def block() -> None:
        began.set()
        release.wait()

    thread = threading.Thread(target=block)
    thread.start()
    began.wait()
    _, wait = Blocking().call(0, 0)
    release.set()
    thread.join()
    assert wait is not None
    assert wait.thread == thread.ident
