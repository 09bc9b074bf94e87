"""Attributes that are made when they are first asked for, by all ranks together.

`functools.cached_property` has one lock for all objects of a class up to Python 3.11. With a
communicator for each of two threads, rank 0 may hold it for the one and rank 1 for the other, and
each waits for ever for the other rank. So here is no lock: two threads of a rank do not call
collectives of one communicator at a time anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar('T')


class made_together(Generic[T]):  # noqa: N801 - a decorator, named as functools' own
    """As `functools.cached_property`, without a lock; for what is collective to make."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    def __get__(self, owner: Any, cls: type | None = None) -> T:
        if owner is None:  # asked of the class, as documentation tools do
            return self  # type: ignore[return-value]
        made: T = owner.__dict__.setdefault(self._name, self._make(owner))
        return made
