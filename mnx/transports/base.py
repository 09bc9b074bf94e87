"""The contract between communicators and the wire.

A transport moves flat, contiguous buffers between the ranks of one group. It knows nothing of
shapes, dtypes that need care, tuples, models or errors of users: all of that is the
communicators' business. Counts are in elements of the buffer.

Collective methods must be called by all ranks of the group in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mnx.arrays import Array

if TYPE_CHECKING:
    from mnx.transports.emergency import EmergencyChannel

ANY_TAG = -1  # also the value of MPI.ANY_TAG in MPICH and Open MPI
FRAME_BYTES = 16 * 1024


class Pending(Protocol):
    """A collective that has been started and not yet awaited."""

    def test(self) -> bool:
        """Make progress; return whether it has ended."""

    def wait(self) -> None:
        """Return when it has ended."""


class SharedWindow(Protocol):
    """Memory that all ranks of a node see: one slot of bytes (uint8) for each rank.

    Attributes
    ----------
    slots : list of array
    places : array of int64 or None
        Where the slots begin, for a loop in C that arrives by itself; None where it cannot.
    looks : int
        How often such a loop looks for a rank that has not come, before it lets `wait` do so;
        if negative, it gives its core away between two looks.
    """

    slots: list[Array]
    places: Array | None
    looks: int

    def arrive(self) -> None:
        """Tell the other ranks that this one has come to its next turn; do not wait for them."""

    def wait(self) -> None:
        """Return when all ranks have arrived there, and see what they wrote before they did."""

    def close(self) -> None:
        """Free the memory. Collective."""


class Transport(ABC):
    """Moves flat contiguous buffers between the ranks of one group."""

    rank: int
    size: int
    max_tag: int
    any_source: int

    @abstractmethod
    def send(self, buffer: Array, dest: int, tag: int) -> None:
        """Send `buffer` to `dest`; it may be changed when this returns."""

    @abstractmethod
    def recv(self, buffer: Array, source: int, tag: int) -> None:
        """Fill `buffer` with a message of the same number of bytes."""

    @abstractmethod
    def send_frame(self, frame: bytes, dest: int, tag: int) -> None:
        """Send at most FRAME_BYTES of host memory."""

    @abstractmethod
    def recv_frame(
        self, memory: bytearray, source: int, tag: int, status: Any = None
    ) -> tuple[int, int]:
        """Fill the beginning of `memory`, FRAME_BYTES long, with a frame.

        `source` may be `any_source`, `tag` ANY_TAG. Returns who sent it, and with which tag.
        """

    @abstractmethod
    def broadcast(self, buffer: Array, root: int) -> None:
        """Fill every rank's `buffer` with the root's."""

    @abstractmethod
    def reduce(self, buffer: Array, root: int, op: str = 'sum', into: Array | None = None) -> None:
        """Reduce all ranks' buffers into the root's `buffer`, or `into` another one there.

        What the other ranks have stays as it is; `into` is the root's alone.
        """

    @abstractmethod
    def all_reduce(self, buffer: Array, op: str = 'sum', into: Array | None = None) -> None:
        """Replace every rank's `buffer` by the reduction of all, or put that `into` another."""

    def find_largest(self, words: Array) -> None:
        """Replace a few int64 words of host memory by the largest of all ranks, each by its own."""
        self.all_reduce(words, 'max')

    @abstractmethod
    def start_all_reduce(self, buffer: Array, op: str = 'sum') -> Pending:
        """Start `all_reduce`; `buffer` belongs to the transport until it has ended."""

    @abstractmethod
    def reduce_scatter(
        self, sent: Array, received: Array, counts: Sequence[int], op: str = 'sum'
    ) -> None:
        """Reduce `sent`, cut it by `counts`, and put this rank's piece into `received`."""

    @abstractmethod
    def gather(self, sent: Array, received: Sequence[Array] | None, root: int) -> None:
        """Fill the root's `received[r]` with rank r's buffer."""

    def gather_rows(self, sent: Array, received: Array | None, root: int) -> None:
        """As `gather`, for buffers of equal length, one behind the other."""
        self.gather(sent, None if received is None else received.reshape(self.size, -1), root)

    @abstractmethod
    def scatter(self, sent: Sequence[Array] | None, received: Array, root: int) -> None:
        """Fill rank r's buffer with the root's `sent[r]`."""

    @abstractmethod
    def all_gather(self, sent: Array, received: Array, counts: Sequence[int]) -> None:
        """Put the ranks' buffers (of `counts` elements) one behind the other on every rank."""

    @abstractmethod
    def all_to_all(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        """Fill rank r's `received[s]` with rank s's `sent[r]`."""

    def all_to_all_rows(self, sent: Array, received: Array) -> None:
        """As `all_to_all`, for parts of equal length, one behind the other."""
        self.all_to_all(sent.reshape(self.size, -1), received.reshape(self.size, -1))

    @abstractmethod
    def split(self, color: int, key: int) -> Transport:
        """Make a transport among the ranks of one `color`, ordered by `key`. Collective."""

    @abstractmethod
    def allocate_shared(self, nbytes: int) -> SharedWindow:
        """Allocate memory that all ranks see; they must be on one node. Collective."""

    @abstractmethod
    def barrier(self) -> None:
        """Return when all ranks have called it."""

    @abstractmethod
    def close(self) -> None:
        """Free what the transport holds. Collective; a second call does nothing."""


class Channels(ABC):
    """Everything one communicator needs to talk to its ranks.

    Attributes
    ----------
    arrays : Transport
        Carries arrays.
    control : Transport
        Carries votes, headers and pickled objects in collectives. May be the one of the arrays.
    mail : Transport
        Carries pickled objects from point to point. Apart from the others, since a receiver may
        take objects of any tag and must not find an array or a piece of a collective instead.
    hosts : tuple of str
        Name of each rank's host; ranks with equal names share memory.
    mpi_comm : mpi4py.MPI.Comm or None
        The user's own communicator: never used for mnx's messages.
    """

    arrays: Transport
    control: Transport
    mail: Transport
    hosts: tuple[str, ...]
    mpi_comm: Any

    @abstractmethod
    def emergency(self) -> EmergencyChannel | None:
        """Make a way for these ranks to tell one another what is wrong. Collective."""

    @abstractmethod
    def split(self, color: int | None, key: int) -> Channels | None:
        """Make channels among the ranks of one `color`, ordered by `key`. Collective."""

    @abstractmethod
    def close(self) -> None:
        """Free the transports. Collective; a second call does nothing."""
