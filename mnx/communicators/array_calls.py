"""What the ranks compare before arrays move, and how a call like one before makes that short.

A call brings words (its name, root, operation, what must be equal on all ranks) and carries what
the others have to know, such as shapes. Both depend on the kind of a plain array only::

    comm.allgather(x)     float32 (3, 4)   look at it, find words, meet      the meeting is kept
    comm.allgather(y)     float32 (3, 4)   known: the same meeting again
    comm.allgather(z)     float32 (5,)     look at it, find words, meet      and this one
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mnx.arrays import (
    MAX_NDIM,
    Array,
    Reduction,
    kind_of,
    module_of,
    on_gpu,
    place_of,
    reduction,
    rows_of,
    sendable,
)
from mnx.communicators import headers
from mnx.communicators.endpoint import Endpoint
from mnx.errors import ArgumentError
from mnx.health.meeting import Meeting, cargo_of

_KEPT = 1000  # meetings; more kinds of calls than that are no pattern worth remembering
_LOOK_AT_NUMBERS = ('max', 'min')  # for NaNs, so that arrays of a kind are not all alike


class ArrayCalls(Endpoint):
    """How the array methods of a communicator agree on what is to be done."""

    def _agreed(
        self, call: str, x: Any, bring: Callable[..., Any], *given: Any
    ) -> tuple[Any, Meeting]:
        """Let the ranks compare a call; return `x` as it travels, and the meeting they held.

        `bring(meeting, call, x, *given)` checks `x` and tells the meeting of it: once for each kind
        of plain array, since the next ones bring the same.
        """
        key = None
        if not (self._resources.closed or self.meetings.about):
            key = _kind_of_call(call, x, given)
        known = self._calls.get(key)
        if known is not None:
            known.again()
            return x, known
        with self._meet(call) as meeting:
            x = bring(meeting, call, x, *given)
        if key is not None:
            if len(self._calls) >= _KEPT:
                self._calls.clear()
            self._calls[key] = meeting
        return x, meeting

    @functools.cached_property
    def _calls(self) -> dict[Any, Meeting]:
        return {}

    def _bring_to_root(self, meeting: Meeting, call: str, x: Any, op: str, root: Any) -> Array:
        meeting.bring(f'root={self._rank(call, "root", root)}')
        return bring_reducible(meeting, call, x, op)

    def _bring_for_root(self, meeting: Meeting, call: str, x: Any, root: Any) -> Array:
        meeting.bring(f'root={self._rank(call, "root", root)}')
        return bring_one(meeting, call, x)

    def _bring_at_root(self, meeting: Meeting, call: str, x: Any, root: Any) -> Array | None:
        root = self._rank(call, 'root', root)
        meeting.bring(f'root={root}')
        sent = sendable(x, call) if self.rank == root else None
        meeting.carry(None if sent is None else headers.cargo(sent))
        return sent

    def _bring_rows_at_root(
        self, meeting: Meeting, call: str, xs: Any, root: Any
    ) -> Array | list[Array] | None:
        root = self._rank(call, 'root', root)
        meeting.bring(f'root={root}')
        found = self._row(xs, call) if self.rank == root else None
        meeting.carry(None if found is None else headers.common(as_rows(found)))
        return found

    def _bring_rows(self, meeting: Meeting, call: str, xs: Any) -> Array | list[Array]:
        found = self._row(xs, call)
        if self._is_row(found):
            meeting.carry(headers.of_rows(found))
        else:
            meeting.bring(*_where(found[0]))
            meeting.carry(headers.common(found))
        return found

    def _bring_reducible_rows(
        self, meeting: Meeting, call: str, xs: Any, op: str
    ) -> Array | list[Array]:
        found = self._row(xs, call)
        rows = as_rows(found)
        rules = [reduction(x.dtype, op) for x in rows]
        meeting.bring(op, *(_named(x.dtype, x.shape) for x in rows), *_where(rows[0]))
        _bring_nans(meeting, rows, rules)
        return found

    def _is_row(self, xs: Any) -> bool:
        """Tell whether an array on the CPU has a row of at least one dimension for each rank."""
        return type(xs) is np.ndarray and 1 < xs.ndim <= MAX_NDIM and len(xs) == self.size

    def _row(self, xs: Any, call: str) -> Array | list[Array]:
        """Return `xs` as one sendable array for each rank, or as one whose rows they are."""
        if self._is_row(xs):
            return sendable(xs, call)
        if not isinstance(xs, Iterable) or getattr(xs, 'ndim', 1) == 0:
            raise ArgumentError(f'{call}: needs one array per rank ({self.size}) but got {xs!r}.')
        rows = [sendable(x, call) for x in xs]
        self._one_per_rank(call, len(rows))
        place_of(*rows)
        return rows


def _kind_of_call(call: str, x: Any, given: tuple[Any, ...]) -> Any:
    """Return what a meeting depends on; None if that is more than the kind of a plain array."""
    for value in given:  # a rank or an operation
        if type(value) is not int and (type(value) is not str or value in _LOOK_AT_NUMBERS):
            return None
    kind = () if x is None else kind_of(x)
    return None if kind is None else (call, given, kind)


def as_rows(found: Any) -> Sequence[Array]:
    """Return the arrays of a row that travels as one array, or as several."""
    return rows_of(found) if type(found) is np.ndarray else found


def bring_one(meeting: Meeting, call: str, x: Any) -> Array:
    """Bring an array of any dtype and shape; return it as it travels."""
    x = sendable(x, call)
    meeting.bring(*_where(x))
    meeting.carry(headers.cargo(x))
    return x


def bring_reducible(meeting: Meeting, call: str, x: Any, op: str) -> Array:
    """Bring an array that has the same dtype and shape on all ranks; return it as it travels."""
    x = sendable(x, call)
    rule = reduction(x.dtype, op)
    meeting.bring(op, *_described(x))
    _bring_nans(meeting, [x], [rule])
    return x


def _bring_nans(meeting: Meeting, xs: Sequence[Array], rules: Sequence[Reduction]) -> None:
    """Let all ranks know whether any has a NaN where the largest or smallest is looked for."""
    looked_at = [x for x, rule in zip(xs, rules, strict=True) if rule.is_of_nans]
    if looked_at:
        found = any(bool(module_of(x).isnan(x).any()) for x in looked_at)
        meeting.carry(cargo_of(found))


def brought_nans(meeting: Meeting, rule: Reduction) -> bool:
    """Tell whether any rank has a NaN where the largest or smallest is looked for."""
    return rule.is_of_nans and bool(meeting.cargo[0] > 0)


def _described(x: Array) -> tuple[str, ...]:
    return _named(x.dtype, x.shape), *_where(x)


@functools.lru_cache(1000)
def _named(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    return f'{dtype} {shape}'


def _where(x: Array) -> tuple[str, ...]:
    return () if type(x) is np.ndarray or not on_gpu(x) else ('on a GPU',)
