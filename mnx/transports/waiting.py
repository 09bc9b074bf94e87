"""Which threads of this rank wait for other ranks now, and since when.

Transports mark what blocks; the watchdog reads it. A wait that ends, even for the next one to
begin at once, is progress: the new one has another beginning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from time import monotonic
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec('P')
R = TypeVar('R')

since: dict[int, float] = {}  # by thread: when its wait began


@dataclass(frozen=True)
class Wait:
    """A thread that waits since `start`, in seconds of `time.monotonic`."""

    thread: int
    start: float


def waits(method: Callable[P, R]) -> Callable[P, R]:
    """Mark a method that returns only when other ranks have done their part.

    Its arguments are positional: handing on keywords would cost as much as all the rest.
    """

    @functools.wraps(method)
    def call(*args: Any) -> Any:
        thread = get_ident()
        since[thread] = monotonic()
        try:
            return method(*args)  # type: ignore[call-arg]
        finally:
            since.pop(thread, None)  # a marked method inside this one has taken it out already

    return cast('Callable[P, R]', call)


def longest() -> Wait | None:
    """Return the wait that has lasted longest; None while no thread waits."""
    now = since.copy()
    return min((Wait(*item) for item in now.items()), key=lambda wait: wait.start, default=None)
