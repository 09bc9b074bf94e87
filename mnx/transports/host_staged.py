"""Arrays on GPUs over a transport that reads host memory only.

    GPU ──1 copy──► [ host memory ] ──2 MPI──► [ host memory ] ──3 copy──► GPU

The host memory is pinned, which a GPU copies at full speed, and kept, since pinning is slow. Long
buffers go through it in pieces of `PIECE_BYTES`, so it stays small. Arrays on the host pass
straight down. On which arrays this is done, and where the memory comes from, are parameters: so
the whole of it also runs over MPI without a GPU, in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from mnx.arrays import Array, copy_across, on_gpu, pinned_empty
from mnx.transports.base import Pending, Transport
from mnx.transports.layer import Layer

PIECE_BYTES = 32 * 1024 * 1024


class Stage:
    """Host memory that is lent for the time of one call, and kept for the next.

    Parameters
    ----------
    allocate : callable
        Takes a number of bytes, returns a flat uint8 array of NumPy.
    """

    def __init__(self, allocate: Callable[[int], Array]) -> None:
        self._allocate = allocate
        self._spare: list[Array] = []

    def borrow(self, like: Array) -> tuple[Array, Array]:
        """Return a block of memory, and a view of it of the size and dtype of the flat `like`."""
        fitting = [block for block in self._spare if block.size >= like.nbytes]
        block = min(fitting, key=lambda b: b.size) if fitting else self._new(like.nbytes)
        self._spare = [b for b in self._spare if b is not block]
        return block, block[: like.nbytes].view(like.dtype)

    def give_back(self, block: Array) -> None:
        """Take back a block that was borrowed."""
        self._spare.append(block)

    def _new(self, nbytes: int) -> Array:
        return self._allocate(1 << max(12, (nbytes - 1).bit_length()))  # few different sizes

    def clear(self) -> None:
        """Free what is not lent."""
        self._spare.clear()


class StagedPending:
    """A started collective whose result is then copied to where it belongs."""

    def __init__(self, pending: Pending, finish: Callable[[], None]) -> None:
        self._pending = pending
        self._finish: Callable[[], None] | None = finish

    def test(self) -> bool:
        """Make progress; return whether it has ended."""
        if self._finish is not None and self._pending.test():
            self.wait()
        return self._finish is None

    def wait(self) -> None:
        """Return when the result is where it belongs."""
        if self._finish is not None:
            self._pending.wait()
            self._finish()
            self._finish = None


class HostStagedTransport(Layer):
    """Carries arrays that lie on GPUs through host memory.

    Parameters
    ----------
    below : Transport
        Carries arrays on the host.
    must_stage : callable
        Tells for an array whether the transport below cannot read it.
    allocate : callable
        Takes a number of bytes, returns a flat uint8 array of NumPy.
    """

    def __init__(
        self,
        below: Transport,
        must_stage: Callable[[Array], bool] = on_gpu,
        allocate: Callable[[int], Array] = pinned_empty,
    ) -> None:
        super().__init__(below)
        self._must_stage, self._allocate = must_stage, allocate
        self._stage = Stage(allocate)

    def send(self, buffer: Array, dest: int, tag: int) -> None:
        if dest == self.rank:
            self._below.send(buffer, dest, tag)  # a copy, for which MPI is not asked
            return
        for piece in self._pieces(buffer):
            with self._sent(piece) as host:
                self._below.send(host, dest, tag)

    def recv(self, buffer: Array, source: int, tag: int) -> None:
        if source == self.rank:
            self._below.recv(buffer, source, tag)
            return
        for piece in self._pieces(buffer):
            with self._received(piece) as host:
                self._below.recv(host, source, tag)

    def broadcast(self, buffer: Array, root: int) -> None:
        for piece in self._pieces(buffer):
            with self._sent(piece) if self.rank == root else self._received(piece) as host:
                self._below.broadcast(host, root)

    def reduce(self, buffer: Array, root: int, op: str = 'sum', into: Array | None = None) -> None:
        if not self._must_stage(buffer):
            self._below.reduce(buffer, root, op, into)
            return
        if into is not None:
            into[...] = buffer
            buffer = into
        for piece in self._pieces(buffer):
            with self._changed(piece) if self.rank == root else self._sent(piece) as host:
                self._below.reduce(host, root, op)

    def all_reduce(self, buffer: Array, op: str = 'sum', into: Array | None = None) -> None:
        if not self._must_stage(buffer):
            self._below.all_reduce(buffer, op, into)
            return
        if into is not None:
            into[...] = buffer
            buffer = into
        for piece in self._pieces(buffer):
            with self._changed(piece) as host:
                self._below.all_reduce(host, op)

    def start_all_reduce(self, buffer: Array, op: str = 'sum') -> Pending:
        if not self._must_stage(buffer):
            return self._below.start_all_reduce(buffer, op)
        block, host = self._stage.borrow(buffer)
        copy_across(buffer, host)

        def finish() -> None:
            copy_across(host, buffer)
            self._stage.give_back(block)

        return StagedPending(self._below.start_all_reduce(host, op), finish)

    def reduce_scatter(
        self, sent: Array, received: Array, counts: Sequence[int], op: str = 'sum'
    ) -> None:
        with self._sent(sent) as source, self._received(received) as target:
            self._below.reduce_scatter(source, target, counts, op)

    def gather(self, sent: Array, received: Sequence[Array] | None, root: int) -> None:
        with self._sent(sent) as source, self._all_received(received) as targets:
            self._below.gather(source, targets, root)

    def scatter(self, sent: Sequence[Array] | None, received: Array, root: int) -> None:
        with self._all_sent(sent) as sources, self._received(received) as target:
            self._below.scatter(sources, target, root)

    def all_gather(self, sent: Array, received: Array, counts: Sequence[int]) -> None:
        with self._sent(sent) as source, self._received(received) as target:
            self._below.all_gather(source, target, counts)

    def all_to_all(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        with self._all_sent(sent) as sources, self._all_received(received) as targets:
            self._below.all_to_all(sources, targets)

    def split(self, color: int, key: int) -> HostStagedTransport:
        below = self._below.split(color, key)
        return HostStagedTransport(below, self._must_stage, self._allocate)

    def close(self) -> None:
        self._stage.clear()
        super().close()

    def _pieces(self, buffer: Array) -> Iterator[Array]:
        """Cut what must be staged; what need not be stays whole, also where it is empty."""
        if not self._must_stage(buffer):
            yield buffer
            return
        length = max(1, PIECE_BYTES // buffer.dtype.itemsize)
        for start in range(0, buffer.size, length):
            yield buffer[start : start + length]

    def _sent(self, buffer: Array) -> AbstractContextManager[Any]:
        return self._staged(buffer, copy_in=True, copy_out=False)

    def _received(self, buffer: Array) -> AbstractContextManager[Any]:
        return self._staged(buffer, copy_in=False, copy_out=True)

    def _changed(self, buffer: Array) -> AbstractContextManager[Any]:
        return self._staged(buffer, copy_in=True, copy_out=True)

    @contextmanager
    def _staged(self, buffer: Array, *, copy_in: bool, copy_out: bool) -> Iterator[Array]:
        """Lend host memory in the place of `buffer`, or `buffer` itself where it will do."""
        if not self._must_stage(buffer):
            yield buffer
            return
        block, host = self._stage.borrow(buffer)
        try:
            if copy_in:
                copy_across(buffer, host)
            yield host
            if copy_out:
                copy_across(host, buffer)
        finally:
            self._stage.give_back(block)

    def _all_sent(self, buffers: Sequence[Array] | None) -> AbstractContextManager[Any]:
        return self._all_staged(buffers, copy_in=True)

    def _all_received(self, buffers: Sequence[Array] | None) -> AbstractContextManager[Any]:
        return self._all_staged(buffers, copy_in=False)

    @contextmanager
    def _all_staged(
        self, buffers: Sequence[Array] | None, *, copy_in: bool
    ) -> Iterator[list[Array] | None]:
        with ExitStack() as stack:
            yield (
                None
                if buffers is None
                else [
                    stack.enter_context(self._staged(b, copy_in=copy_in, copy_out=not copy_in))
                    for b in buffers
                ]
            )
