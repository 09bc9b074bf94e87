"""The linear communications: what each one moves, and which one is its adjoint.

x_r and y_r are what rank r gives and gets; x_r[s] and y_r[s] the s-th of its several arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mnx.arrays import Array
from mnx.errors import MismatchError
from mnx.functions.node import Communication

if TYPE_CHECKING:
    from collections import defaultdict

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


class Message(Communication):
    """A message to or from one rank; both ends number those of their direction and tag alike.

    The gradient of a message brings that one's number, so that it is not taken for the gradient of
    another where the ranks call backward in different orders.
    """

    is_collective = False

    def _count(self, counter: defaultdict[tuple[int, int], int]) -> None:
        """Keep the number of the message that has just been counted."""
        self.turn = counter[int(self.route.peer), int(self.route.tag)]


class Send(Message):
    """The peer's y = x, one or several."""

    call = 'send'

    def communicate(self, xs: Arrays) -> Arrays:
        if self.adjoint_of is not None:
            xs = (*xs, np.array(self.adjoint_of))
        self.comm.send(xs[0] if len(xs) == 1 else xs, self.route.peer, self.route.tag)
        self._count(self.comm.mail.sent)
        return ()


class Recv(Message):
    """The peer's y = x, one or several."""

    call = 'recv'

    def communicate(self, xs: Arrays) -> Arrays:
        found = self.comm.recv(self.route.peer, self.route.tag)
        self._count(self.comm.mail.received)
        ys = found if isinstance(found, tuple) else (found,)
        return ys if self.adjoint_of is None else self._gradients(ys)

    def _gradients(self, ys: Arrays) -> Arrays:
        """Return the gradients that came, if they are those of the message that was sent."""
        *gradients, number = ys
        if number.ndim or number.dtype.kind != 'i' or number != self.adjoint_of:
            raise MismatchError(
                f'backward of send: waits for the gradient of message {self.adjoint_of} to rank '
                f'{self.route.peer} (tag {self.route.tag}), but got that of another. Call '
                'backward on both ranks for the same messages, the last one first; '
                'pseudo_connect makes a loss depend on what send returned.'
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
