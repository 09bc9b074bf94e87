"""Collectives and messages of arrays: shapes, dtypes and tuples, over flat transports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from mnx.arrays import (
    Array,
    Reduction,
    as_bytes,
    block_like,
    empty_at,
    flat,
    module_of,
    on_gpu,
    place_of,
    reduction,
    rows_like,
    rows_of,
    shares_block,
)
from mnx.communicators import headers
from mnx.communicators.array_calls import (
    ArrayCalls,
    as_rows,
    bring_one,
    bring_reducible,
    brought_nans,
)
from mnx.communicators.point_to_point import PointToPoint
from mnx.transports.base import Pending
from mnx.transports.local import Done


class PendingArray:
    """An array that is still on its way."""

    def __init__(self, pending: Pending, finish: Callable[[], Array]) -> None:
        self._pending = pending
        self._finish = finish
        self._result: Array | None = None

    def test(self) -> bool:
        """Make progress; return whether it has ended."""
        return self._result is not None or self._pending.test()

    def wait(self) -> Array:
        """Return the array when it is there; a second call returns the same one."""
        if self._result is None:
            self._pending.wait()
            self._result = self._finish()
        return self._result


class Flights:
    """What has been started and may not have ended: MPI still writes there, wanted or not."""

    def __init__(self) -> None:
        self._pending: list[PendingArray] = []

    def add(self, pending: PendingArray) -> PendingArray:
        """Keep `pending`, and let go of those that have ended."""
        self._pending = [p for p in self._pending if not p.test()]
        self._pending.append(pending)
        return pending

    def close(self) -> None:
        """Wait for all."""
        while self._pending:
            self._pending.pop(0).wait()


class ArrayMessages(ArrayCalls):
    """The array methods of a communicator.

    All NumPy numeric dtypes and bool (and bfloat16 with ml_dtypes), any layout, 0-d and empty
    arrays. Results are new C-contiguous arrays, except that ``bcast`` returns the root's own.
    What was an array of CuPy arrives as one, on the receiver's current GPU; in one collective all
    ranks' arrays are NumPy's or all are CuPy's.
    """

    def allreduce(self, x: Array, op: str = 'sum') -> Array:
        """Reduce arrays of equal shape and dtype over all ranks, element by element.

        Collective: all ranks call it.

        Parameters
        ----------
        x : array, any shape
        op : {'sum', 'mean', 'max', 'min', 'prod'}

        Returns
        -------
        array
            Same shape and dtype on every rank (float64 for the mean of integers and bools);
            bitwise equal on all ranks.

        Raises
        ------
        MismatchError
            A rank's shape, dtype or `op` differs (on all ranks).
        DtypeError, ArgumentError
            Not an array; a dtype without that operation; an unknown `op` (on all ranks).

        Notes
        -----
        float16 and bfloat16 are added up in float32. References: MPI 4.1, section 6.9.6.
        """
        x, meeting = self._agreed('allreduce', x, bring_reducible, op)
        rule = reduction(x.dtype, op)
        if brought_nans(meeting, rule):
            return self._finished(self._extreme_or_nan(x, rule), op, rule)
        total = empty_at(place_of(x), x.shape, rule.wire)
        self.reduce_flat(flat(x.astype(rule.wire, copy=False)), flat(total), rule.op)
        return self._finished(total, op, rule)

    def reduce_flat(
        self, sent: Array, into: Array | None, op: str, root: int | None = None
    ) -> None:
        """Put the reduction `into` an array of the root, or of every rank. Collective."""
        if root is None:
            self._arrays.all_reduce(sent, op, into)
        else:
            self._arrays.reduce(sent, root, op, into)

    def reduce_rows(self, sent: Array, into: Array, counts: Sequence[int], op: str) -> None:
        """Reduce a row of `counts` elements for each rank; put this rank's there. Collective."""
        self._arrays.reduce_scatter(sent, into, counts, op)

    def _extreme_or_nan(self, x: Array, rule: Reduction) -> Array:
        """Return the largest or smallest numbers, and NaN where any rank has one, as NumPy does.

        MPI returns now one, now the other, and not the same to all ranks.
        """
        xp = module_of(x)
        numbers = x.astype(rule.wire)
        values = flat(numbers)  # a number of no dimension gives no array to `isnan`
        is_nan = xp.isnan(values).astype(np.uint8)
        values[is_nan != 0] = -np.inf if rule.op == 'max' else np.inf
        self._arrays.all_reduce(is_nan, 'max')
        self._arrays.all_reduce(values, rule.op)
        values[is_nan != 0] = np.nan
        return numbers

    def start_allreduce(self, x: Array, op: str = 'sum') -> PendingArray:
        """Start `allreduce` and return at once; the result comes with ``wait()``.

        Collective: all ranks start the same ones in the same order. Parameters, dtypes and errors
        as `allreduce`.

        Returns
        -------
        PendingArray
            ``test()`` makes progress and tells whether it has ended; ``wait()`` returns the array.

        Notes
        -----
        MPI makes progress inside its calls only, so call ``test()`` now and then between other
        work. References: MPI 4.1, section 6.12.
        """
        x, meeting = self._agreed('start_allreduce', x, bring_reducible, op)
        rule = reduction(x.dtype, op)
        if brought_nans(meeting, rule):
            return PendingArray(
                Done(), functools.partial(self._finished, self._extreme_or_nan(x, rule), op, rule)
            )
        total = x.astype(rule.wire)
        pending = self._arrays.start_all_reduce(flat(total), rule.op)
        return self._flights.add(PendingArray(pending, lambda: self._finished(total, op, rule)))

    @functools.cached_property
    def _flights(self) -> Flights:
        return self._own(Flights())

    def reduce(self, x: Array, op: str = 'sum', root: SupportsIndex = 0) -> Array | None:
        """Reduce arrays of equal shape and dtype over all ranks, onto the root.

        Collective: all ranks call it. Parameters, dtypes and errors as `allreduce`.

        Returns
        -------
        array or None
            The reduction on the root, None elsewhere.
        """
        x, meeting = self._agreed('reduce', x, self._bring_to_root, op, root)
        root, rule = int(root), reduction(x.dtype, op)
        total = self._total(x, rule, root, brought_nans(meeting, rule))
        return self._finished(total, op, rule) if self.rank == root else None

    def _total(self, x: Array, rule: Reduction, root: int, has_nans: bool) -> Array:
        """Return the reduction on the root, and anything elsewhere. Collective."""
        if has_nans:
            return self._extreme_or_nan(x, rule)
        sent = x.astype(rule.wire, copy=False)
        total = empty_at(place_of(x), x.shape, rule.wire) if self.rank == root else None
        self.reduce_flat(flat(sent), None if total is None else flat(total), rule.op, root)
        return sent if total is None else total

    def reduce_scatter(self, xs: Array | Iterable[Array], op: str = 'sum') -> Array:
        """Reduce the r-th arrays of all ranks onto rank r.

        Collective: all ranks call it. Adjoint of `allgather`.

        Parameters
        ----------
        xs : sequence of `size` arrays, or one array whose first axis has length `size`
            Shapes and dtypes may differ within the sequence, not between ranks.
        op : {'sum', 'mean', 'max', 'min', 'prod'}

        Returns
        -------
        array
            On rank r the reduction of all ranks' ``xs[r]``.
        """
        found, meeting = self._agreed('reduce_scatter', xs, self._bring_reducible_rows, op)
        whole = found if type(found) is np.ndarray else xs
        xs = as_rows(found)
        rules = [reduction(x.dtype, op) for x in xs]
        mine = empty_at(place_of(xs[0]), xs[self.rank].shape, rules[self.rank].wire)
        has_nans = any(brought_nans(meeting, rule) for rule in rules)
        if not has_nans and len({(rule.wire, rule.op) for rule in rules}) == 1:
            sent = _joined(whole, xs).astype(rules[0].wire, copy=False)
            self.reduce_rows(sent, flat(mine), [x.size for x in xs], rules[0].op)
        else:
            for root, (x, rule) in enumerate(zip(xs, rules, strict=True)):
                total = self._total(x, rule, root, brought_nans(meeting, rule))
                mine = total if root == self.rank else mine
        return self._finished(mine, op, rules[self.rank])

    def bcast(self, x: Array | None, root: SupportsIndex = 0) -> Array:
        """Send the root's array to all ranks.

        Collective: all ranks call it; `x` is ignored off the root. Adjoint of `reduce`.

        Returns
        -------
        array
            The root's `x` itself there, a copy of it elsewhere.
        """
        given = None if type(root) is int and root != self.rank else x
        sent, meeting = self._agreed('bcast', given, self._bring_at_root, root)
        received = headers.allocate(meeting.cargo) if sent is None else sent
        self._arrays.broadcast(as_bytes(received), int(root))
        return received if sent is None else x

    def gather(self, x: Array, root: SupportsIndex = 0) -> tuple[Array, ...] | None:
        """Collect every rank's array on the root; shapes and dtypes may differ.

        Collective: all ranks call it. Adjoint of `scatter`.

        Returns
        -------
        tuple of `size` arrays, or None
            In rank order on the root, None elsewhere. Rows of one block of memory, maybe, as
            those of `allgather` and `alltoall`: copy the one that you keep for long.
        """
        x, meeting = self._agreed('gather', x, self._bring_for_root, root)
        root, found = int(root), None
        at_root = self.rank == root
        if not meeting.all_brought_the_same():
            table = headers.empty_table(self.size) if at_root else None
            self._control.gather(headers.header(x), table, root)
            found = None if table is None else tuple(map(headers.allocate, table))
        elif shares_block(x):
            block = block_like(x, self.size) if at_root else None
            self._arrays.gather_rows(as_bytes(x), None if block is None else as_bytes(block), root)
            return None if block is None else rows_of(block)
        elif at_root:
            found = rows_like(x, self.size)
        self._arrays.gather(as_bytes(x), found and [as_bytes(y) for y in found], root)
        return found

    def allgather(self, x: Array) -> tuple[Array, ...]:
        """Collect every rank's array on every rank; shapes and dtypes may differ.

        Collective: all ranks call it. Adjoint of `reduce_scatter`.

        Returns
        -------
        tuple of `size` arrays, in rank order
        """
        x, meeting = self._agreed('allgather', x, bring_one)
        if meeting.all_brought_the_same():
            block = block_like(x, self.size)
            self._arrays.all_gather(as_bytes(x), as_bytes(block), [x.nbytes] * self.size)
            return rows_of(block)
        table = headers.empty_table(self.size)
        self._control.all_gather(headers.header(x), flat(table), [headers.WORDS] * self.size)
        counts = headers.nbytes(table)
        received = empty_at(place_of(x), [sum(counts)], np.dtype(np.uint8))
        self._arrays.all_gather(as_bytes(x), received, counts)
        return headers.cut(received, table)

    def scatter(self, xs: Array | Iterable[Array] | None, root: SupportsIndex = 0) -> Array:
        """Give the r-th of the root's arrays to rank r; shapes and dtypes may differ.

        Collective: all ranks call it; `xs` is ignored off the root. Adjoint of `gather`.

        Parameters
        ----------
        xs : sequence of `size` arrays, or one array whose first axis has length `size`
        """
        given = None if type(root) is int and root != self.rank else xs
        found, meeting = self._agreed('scatter', given, self._bring_rows_at_root, root)
        rows, root = None if found is None else as_rows(found), int(root)
        words = meeting.cargo
        if words[0] == headers.MIXED:
            words = np.empty(headers.WORDS, np.int64)
            self._control.scatter(None if rows is None else headers.headers(rows), words, root)
        received = headers.allocate(words)
        sent = None if rows is None else [as_bytes(x) for x in rows]
        self._arrays.scatter(sent, as_bytes(received), root)
        return received

    def alltoall(self, xs: Array | Iterable[Array]) -> tuple[Array, ...]:
        """Give the r-th of this rank's arrays to rank r; shapes and dtypes may differ.

        Collective: all ranks call it. Self-adjoint.

        Parameters
        ----------
        xs : sequence of `size` arrays, or one array whose first axis has length `size`

        Returns
        -------
        tuple of `size` arrays; the s-th came from rank s
        """
        found, meeting = self._agreed('alltoall', xs, self._bring_rows)
        are_equal = meeting.cargo[0] != headers.MIXED and meeting.all_brought_the_same()
        if are_equal and self._is_row(found):
            block = empty_at('cpu', found.shape, found.dtype)
            self._arrays.all_to_all_rows(as_bytes(found), as_bytes(block))
            return rows_of(block)
        rows = as_rows(found)
        if are_equal:
            received = rows_like(rows[0], self.size)
        else:
            table = headers.empty_table(self.size)
            self._control.all_to_all(headers.headers(rows), table)
            received = tuple(map(headers.allocate, table))
        self._arrays.all_to_all([as_bytes(x) for x in rows], [as_bytes(y) for y in received])
        return received

    def barrier(self) -> None:
        """Return when all ranks have called it. Collective."""
        with self._meet('barrier') as meeting:
            pass
        if not meeting.takes_place:  # or else nobody has left it before all had come
            self._control.barrier()

    def send(
        self, data: Array | Sequence[Array], dest: SupportsIndex, tag: SupportsIndex = 0
    ) -> None:
        """Send an array, or a tuple of arrays of any dtypes, to one rank.

        The counterpart is ``recv(source, tag)`` on rank `dest`. Returns when `data` may be
        changed, which for long messages is when `dest` has begun to receive.
        """
        to, number = self._route('send', 'dest', dest, tag)
        self.mail.send(data, to, number)

    def recv(self, source: SupportsIndex, tag: SupportsIndex = 0) -> Array | tuple[Array, ...]:
        """Receive what `source` sent with `tag`: an array, or a tuple if it sent a sequence.

        Parameters
        ----------
        source : int
            A rank, or mpi4py's ``MPI.ANY_SOURCE``.
        tag : int
        """
        is_rank = type(source) is int and source >= 0  # no further look, which takes as long
        if not is_rank and source == self._arrays.any_source:
            self._check_open('recv')
            return self.mail.recv(int(source), self._tag('recv', tag))
        sender, number = self._route('recv', 'source', source, tag)
        return self.mail.recv(sender, number)

    @functools.cached_property
    def mail(self) -> PointToPoint:
        """What `send` and `recv` go through; counts their messages."""
        return PointToPoint(self._arrays)

    def _finished(self, total: Array, op: str, rule: Reduction) -> Array:
        if op != 'mean' and total.dtype == rule.result:
            return total
        with np.errstate(all='ignore'):  # as MPI: an error would be one rank's alone
            if op == 'mean':
                total /= self.size
            return total.astype(rule.result, copy=False)


def _joined(whole: Any, rows: Sequence[Array]) -> Array:
    """Return the rows of `whole` one behind the other: itself, if they lie so."""
    is_one = type(whole) is np.ndarray or on_gpu(whole)
    if is_one and whole.flags.c_contiguous and whole.dtype == rows[0].dtype:
        return flat(whole)
    return module_of(rows[0]).concatenate([flat(x) for x in rows])
