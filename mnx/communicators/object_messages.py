"""Python objects between ranks: pickled, of any size, arrays inside them not copied twice."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any, SupportsIndex

import numpy as np

from mnx.arrays import Array
from mnx.communicators.endpoint import Endpoint
from mnx.communicators.point_to_point import PointToPoint
from mnx.errors import ArgumentError
from mnx.transports import pickles
from mnx.transports.base import ANY_TAG

MAX_BUF_LEN = 256 * 1024 * 1024


class ObjectMessages(Endpoint):
    """The object methods of a communicator. An object may be anything pickle takes, also None."""

    def bcast_obj(self, obj: Any, max_buf_len: int = MAX_BUF_LEN, root: SupportsIndex = 0) -> Any:
        """Send the root's object to all ranks.

        Collective: all ranks call it; `obj` is ignored off the root.

        Parameters
        ----------
        obj : object
        max_buf_len : int
            The longest single message in bytes; longer pickles travel in several.
        root : int
        """
        with self._meet('bcast_obj') as meeting:
            root = self._rank('bcast_obj', 'root', root)
            _check_buf_len(max_buf_len)
            meeting.bring(f'root={root} max_buf_len={max_buf_len}')
            sent = pickles.dumps(obj) if self.rank == root else None
        size = np.array([0 if sent is None else sent.size], np.int64)
        self._control.broadcast(size, root)
        buffer = np.empty(int(size[0]), np.uint8) if sent is None else sent
        for start in range(0, buffer.size, max_buf_len):
            self._control.broadcast(buffer[start : start + max_buf_len], root)
        return pickles.loads(buffer) if sent is None else obj

    def gather_obj(self, obj: Any, root: SupportsIndex = 0) -> list[Any] | None:
        """Collect every rank's object on the root, as a list in rank order; None elsewhere.

        Collective: all ranks call it.
        """
        with self._meet('gather_obj') as meeting:
            root = self._rank('gather_obj', 'root', root)
            meeting.bring(f'root={root}')
            sent = pickles.dumps(obj)
        at_root = self.rank == root
        sizes: Array = np.empty((self.size, 1), np.int64) if at_root else None
        self._control.gather(np.array([sent.size], np.int64), sizes, root)
        found = None if sizes is None else [np.empty(int(s), np.uint8) for s in sizes[:, 0]]
        self._control.gather(sent, found, root)
        return None if found is None else [pickles.loads(buffer) for buffer in found]

    def allgather_obj(self, obj: Any) -> list[Any]:
        """Collect every rank's object on every rank, as a list in rank order.

        Collective: all ranks call it.
        """
        with self._meet('allgather_obj'):
            sent = pickles.dumps(obj)
        found = pickles.all_gather_bytes(self._control, sent)
        return [pickles.loads(buffer) for buffer in found]

    def scatter_obj(self, objs: Sequence[Any] | None, root: SupportsIndex = 0) -> Any:
        """Give the r-th of the root's `size` objects to rank r, which receives only its own.

        Collective: all ranks call it; `objs` is ignored off the root.
        """
        with self._meet('scatter_obj') as meeting:
            root = self._rank('scatter_obj', 'root', root)
            meeting.bring(f'root={root}')
            sent = self._pickled_row(objs, 'scatter_obj') if self.rank == root else None
        size = np.empty(1, np.int64)
        self._control.scatter(None if sent is None else _sizes(sent), size, root)
        buffer = np.empty(int(size[0]), np.uint8)
        self._control.scatter(sent, buffer, root)
        return pickles.loads(buffer)

    def alltoall_obj(self, objs: Sequence[Any]) -> list[Any]:
        """Give the r-th of this rank's `size` objects to rank r; return what the ranks gave.

        Collective: all ranks call it.
        """
        with self._meet('alltoall_obj'):
            sent = self._pickled_row(objs, 'alltoall_obj')
        sizes: Array = np.empty((self.size, 1), np.int64)
        self._control.all_to_all(_sizes(sent), sizes)
        found = [np.empty(int(s), np.uint8) for s in sizes[:, 0]]
        self._control.all_to_all(sent, found)
        return [pickles.loads(buffer) for buffer in found]

    def allreduce_obj(self, obj: Any) -> Any:
        """Add up (``+``) every rank's object in rank order; the sum on every rank.

        Collective: all ranks call it.
        """
        gathered = self.gather_obj(obj)
        with self._meet('allreduce_obj'):
            total = None if gathered is None else functools.reduce(operator.add, gathered)
        return self.bcast_obj(total)

    def agree(self, ok: bool) -> bool:
        """Return whether every rank said True.

        Collective: all ranks call it. The way to decide together about something that may
        differ between ranks, such as a condition to stop.
        """
        with self._meet('agree'):
            vote = np.array([bool(ok)], np.int64)
        self._control.all_reduce(vote, 'min')
        return bool(vote[0])

    def send_obj(self, obj: Any, dest: SupportsIndex, tag: int = 0) -> None:
        """Send an object to one rank, which receives it by ``recv_obj``."""
        self._check_open('send_obj')
        dest, tag = self._rank('send_obj', 'dest', dest), self._tag('send_obj', tag)
        self._object_mail.send(pickles.dumps(obj), dest, tag)

    def recv_obj(self, source: SupportsIndex, status: Any = None, tag: int = ANY_TAG) -> Any:
        """Receive an object that `source` sent by ``send_obj``.

        Parameters
        ----------
        source : int
            A rank, or mpi4py's ``MPI.ANY_SOURCE``.
        status : mpi4py.MPI.Status, optional
            Filled with source and tag of the message.
        tag : int
            Default: any tag.
        """
        self._check_open('recv_obj')
        if source != self._channels.mail.any_source:
            source = self._rank('recv_obj', 'source', source)
        if tag != ANY_TAG:
            tag = self._tag('recv_obj', tag)
        return pickles.loads(self._object_mail.recv(int(source), tag, status))

    @functools.cached_property
    def _object_mail(self) -> PointToPoint:
        return PointToPoint(self._channels.mail)

    def _pickled_row(self, objs: Sequence[Any] | None, call: str) -> list[Array]:
        if objs is None:
            raise ArgumentError(f'{call}: needs one object per rank ({self.size}) but got None.')
        if isinstance(objs, (Mapping, Set)):  # its keys would be sent, or in any order
            raise ArgumentError(
                f'{call}: needs a sequence of one object per rank ({self.size}) but got a '
                f'{type(objs).__name__}. Give a list.'
            )
        self._one_per_rank(call, len(objs))
        return [pickles.dumps(obj) for obj in objs]


def _sizes(buffers: list[Array]) -> Array:
    return np.array([[buffer.size] for buffer in buffers], np.int64)


def _check_buf_len(max_buf_len: int) -> None:
    if not 0 < max_buf_len < 2**31 - 1:
        raise ArgumentError(
            f'bcast_obj: max_buf_len must be 1 to {2**31 - 2} bytes, but got {max_buf_len!r}.'
        )
