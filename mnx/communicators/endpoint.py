"""What all parts of a communicator stand on: who am I, who are the others, how do we meet."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex, TypeVar

import numpy as np

from mnx.errors import ArgumentError, ClosedError, explain
from mnx.health.meeting import Meeting, Meetings
from mnx.lazily import made_together
from mnx.topology import Topology
from mnx.transports.base import Channels, Transport


@dataclass
class Config:
    """What `set_config` sets.

    Attributes
    ----------
    allreduce_grad_dtype : numpy.dtype or None
        The dtype in which gradients are exchanged; None means their own.
    batched_copy : bool
        On GPUs: pack all gradients by one kernel. Has no effect on CPUs.
    """

    allreduce_grad_dtype: np.dtype[Any] | None = None
    batched_copy: bool = True


class Closable(Protocol):
    """Something to be freed, by all ranks together."""

    def close(self) -> None: ...


@dataclass
class Resources:
    """What a communicator holds, in the order in which it was made.

    It outlives the communicator where ranks have yet to agree that nobody needs it any more.
    """

    parts: list[Closable]
    closed: bool = False

    def close(self) -> None:
        """Free everything, the last part first. Collective; a second call does nothing."""
        self.closed = True
        while self.parts:
            self.parts.pop().close()


Owned = TypeVar('Owned', bound=Closable)


@dataclass(frozen=True)
class Groups:
    """The ranks of this node, and the ranks with this one's place on all nodes."""

    intra: Transport
    inter: Transport

    def close(self) -> None:
        """Free both transports. Collective."""
        self.intra.close()
        self.inter.close()


class Endpoint:
    """One rank's end of a communicator.

    Attributes
    ----------
    rank, size : int
        This process's number and the number of processes.
    intra_rank, intra_size : int
        The same among the processes of this node.
    inter_rank, inter_size : int
        This node's number and the number of nodes.
    mpi_comm : mpi4py.MPI.Comm or None
        The user's MPI communicator; mnx talks over duplicates of it. None without MPI.
    """

    def __init__(self, channels: Channels, config: Config | None = None) -> None:
        self._channels = channels
        self._config = config or Config()
        self._arrays, self._control = channels.arrays, channels.control
        self.meetings = Meetings(self._control)
        self._resources = Resources([channels])
        self.mpi_comm = channels.mpi_comm
        self.rank, self.size = self._control.rank, self._control.size
        self.topology = Topology.of_hosts(channels.hosts)
        self.intra_rank = self.topology.intra_rank(self.rank)
        self.intra_size = self.topology.intra_size(self.rank)
        self.inter_rank = self.topology.inter_rank(self.rank)
        self.inter_size = self.topology.inter_size

    @made_together
    def groups(self) -> Groups:
        """The transports within this node and across the nodes. Collective at first use."""
        return self._own(
            Groups(
                self._arrays.split(self.inter_rank, self.rank),
                self._arrays.split(self.intra_rank, self.rank),
            )
        )

    def _own(self, part: Owned) -> Owned:
        """Keep `part` to close it when the communicator is finalized."""
        self._resources.parts.append(part)
        return part

    def together(self, call: str) -> Meeting:
        """Return a block at whose end all ranks raise, or none.

        Collective: all ranks enter it, with the same `call`. What one rank raises inside, all
        raise: the others an error of the same class, or `RemoteError` if it is not one of mnx's.

        Examples
        --------
        >>> import mnx
        >>> comm = mnx.create_communicator('local')
        >>> with comm.together('load'):
        ...     data = [1, 2, 3] if comm.rank == 0 else None
        """
        self._check_open(call)
        return self.meetings(call)

    def _meet(self, call: str) -> Meeting:
        """As `together`, for the collectives of mnx itself: ``MNX_CHECK=0`` leaves it out."""
        if self._resources.closed:
            self._check_open(call)
        return self.meetings(call, optional=True)

    def _check_open(self, call: str) -> None:
        if self._resources.closed:
            raise ClosedError(f'{call}: this communicator has been finalized. Create a new one.')

    def _rank(self, call: str, name: str, value: SupportsIndex) -> int:
        """Return `value` as an int (NumPy's ints are fine) if it is a rank."""
        try:
            rank = operator.index(value)
        except TypeError:
            rank = -1
        if not 0 <= rank < self.size:
            raise ArgumentError(
                explain(
                    call,
                    f'{name} is not a rank',
                    f'0 to {self.size - 1}',
                    repr(value),
                    rank=self.rank,
                    size=self.size,
                    advice='Ranks count from 0 to comm.size - 1',
                )
            )
        return rank

    def _tag(self, call: str, tag: SupportsIndex) -> int:
        number, highest = operator.index(tag), self._max_tag
        if not 0 <= number <= highest:
            raise ArgumentError(f'{call}: a tag is 0 to {highest}, but got {tag!r}.')
        return number

    @functools.cached_property
    def _max_tag(self) -> int:
        return min(self._channels.mail.max_tag, self._arrays.max_tag)

    def _route(
        self, call: str, name: str, peer: SupportsIndex, tag: SupportsIndex
    ) -> tuple[int, int]:
        """Return the other rank and the tag of a message, if they are valid."""
        usual = type(peer) is type(tag) is int and not self._resources.closed
        if usual and 0 <= peer < self.size and 0 <= tag <= self._max_tag:  # type: ignore[operator]
            return peer, tag  # type: ignore[return-value]
        self._check_open(call)
        return self._rank(call, name, peer), self._tag(call, tag)

    def _one_per_rank(self, call: str, given: int) -> None:
        if given != self.size:
            raise ArgumentError(
                explain(
                    call,
                    'needs one item per rank',
                    self.size,
                    given,
                    rank=self.rank,
                    size=self.size,
                    advice='Pass a tuple of comm.size items',
                )
            )
