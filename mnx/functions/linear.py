"""The linear communications: what each one moves, and which one is its adjoint.

x_r and y_r are what rank r gives and gets; x_r[s] and y_r[s] the s-th of its several arrays.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from mnx.arrays import Array
from mnx.errors import MismatchError
from mnx.functions.node import Communication

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Arrays = tuple[Array, ...]


class AllReduce(Communication):
    """y_r = sum over s of x_s; divided by the number of ranks if `op` is 'mean'."""

    call = 'allreduce'

    def communicate(self, xs: Arrays) -> Arrays:
        return (self.comm.allreduce(xs[0], self.route.op),)


class AllToAll(Communication):
    """y_r[s] = x_s[r]."""

    call = 'alltoall'

    def communicate(self, xs: Arrays) -> Arrays:
        return self.comm.alltoall(xs)


class AllGather(Communication):
    """y_r[s] = x_s."""

    call = 'allgather'

    def communicate(self, xs: Arrays) -> Arrays:
        return self.comm.allgather(xs[0])


class ReduceScatter(Communication):
    """y_r = sum over s of x_s[r]."""

    call = 'reduce_scatter'

    def communicate(self, xs: Arrays) -> Arrays:
        return (self.comm.reduce_scatter(xs),)


class Bcast(Communication):
    """y_r = x_root; divided by the number of ranks if `op` is 'mean'. The root alone gives one."""

    call = 'bcast'

    def communicate(self, xs: Arrays) -> Arrays:
        y = self.comm.bcast(xs[0] if xs else None, self.route.root)
        if self.route.op == 'mean':
            y = y.copy()
            y /= self.comm.size
        return (y,)


class Reduce(Communication):
    """y_root = sum over s of x_s, or their mean. The root alone gets one."""

    call = 'reduce'

    def communicate(self, xs: Arrays) -> Arrays:
        y = self.comm.reduce(xs[0], self.route.op, self.route.root)
        return () if y is None else (y,)


class Gather(Communication):
    """y_root[s] = x_s. The root alone gets them."""

    call = 'gather'

    def communicate(self, xs: Arrays) -> Arrays:
        return self.comm.gather(xs[0], self.route.root) or ()


class Scatter(Communication):
    """y_r = x_root[r]. The root alone gives them."""

    call = 'scatter'

    def communicate(self, xs: Arrays) -> Arrays:
        return (self.comm.scatter(xs, self.route.root),)


_messages: WeakKeyDictionary[Communicator, Counter[tuple[str, Any, Any]]] = WeakKeyDictionary()


def next_message(comm: Communicator, lane: tuple[str, Any, Any]) -> int:
    """Return the number of the next message to or from a rank; both ends count alike."""
    counter = _messages.setdefault(comm, Counter())
    counter[lane] += 1
    return counter[lane]


class Send(Communication):
    """The peer's y = x, one or several."""

    call = 'send'
    is_collective = False

    def communicate(self, xs: Arrays) -> Arrays:
        self.turn = next_message(self.comm, ('to', self.route.peer, self.route.tag))
        if self.adjoint_of is not None:
            xs = (*xs, np.array(self.adjoint_of))
        self.comm.send(xs[0] if len(xs) == 1 else xs, self.route.peer, self.route.tag)
        return ()


class Recv(Communication):
    """y = the peer's x, one or several."""

    call = 'recv'
    is_collective = False

    def communicate(self, xs: Arrays) -> Arrays:
        self.turn = next_message(self.comm, ('from', self.route.peer, self.route.tag))
        found = self.comm.recv(self.route.peer, self.route.tag)
        found = found if isinstance(found, tuple) else (found,)
        return found if self.adjoint_of is None else self._checked(found)

    def _checked(self, found: Arrays) -> Arrays:
        """Return the gradients without their number, which must be that of the message sent."""
        *gradients, number = found
        if number != self.adjoint_of:
            raise MismatchError(
                f'backward of send: waits for the gradient of message {self.adjoint_of} to rank '
                f'{self.route.peer} (tag {self.route.tag}), but got that of message {number}. '
                'Call backward in the same order on both ranks, the last message first.'
            )
        return tuple(gradients)


class SyncGrad(Communication):
    """y_r = x_r, whose gradient is reduced."""

    call = 'sync_grad'

    def communicate(self, xs: Arrays) -> Arrays:
        return xs


for _one, _other in (
    (AllReduce, AllReduce),
    (AllToAll, AllToAll),
    (AllGather, ReduceScatter),
    (Bcast, Reduce),
    (Gather, Scatter),
    (Send, Recv),
):
    _one.adjoint, _other.adjoint = _other, _one

SyncGrad.adjoint = AllReduce  # not of what it does, but of what it means: x is one value, on all
