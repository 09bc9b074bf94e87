"""The linear communications: what each one moves, and which one is its adjoint.

x_r and y_r are what rank r gives and gets; x_r[s] and y_r[s] the s-th of its several arrays.
"""

from __future__ import annotations

from mnx.arrays import Array
from mnx.functions.node import Communication

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


class Send(Communication):
    """The peer's y = x, one or several."""

    call = 'send'
    is_collective = False

    def communicate(self, xs: Arrays) -> Arrays:
        self.comm.send(xs[0] if len(xs) == 1 else xs, self.route.peer, self.route.tag)
        return ()


class Recv(Communication):
    """y = the peer's x, one or several."""

    call = 'recv'
    is_collective = False

    def communicate(self, xs: Arrays) -> Arrays:
        found = self.comm.recv(self.route.peer, self.route.tag)
        return found if isinstance(found, tuple) else (found,)


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
