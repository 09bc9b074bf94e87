"""Reductions that are not linear: maximum, minimum, product."""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from collections.abc import Sequence

from mnx.arrays import module_of
from mnx.functions.linear import AllGather, AllReduce, Arrays, Bcast
from mnx.functions.node import EVERY_RANK, Communication, Route, Variable, filled


class Reduction(Communication):
    """y = op over s of x_s, on all ranks or on the root alone."""

    call = 'reduce'

    def communicate(self, xs: Arrays) -> Arrays:
        self.retain_inputs((0,))
        if self.route.root is EVERY_RANK:
            return (self.comm.allreduce(xs[0], self.route.op),)
        y = self.comm.reduce(xs[0], self.route.op, self.route.root)
        return () if y is None else (y,)

    def backward(
        self, indexes: Sequence[int], gys: Sequence[Variable | None]
    ) -> tuple[Variable | None, ...]:
        (x,) = self.get_retained_inputs()
        token = self._token_of_adjoint(gys[-1])
        gx = None
        if self._is_differentiable(0):
            slope, token = self.slope(x, token)
            gy, token = self.counted(self._total()).run(filled(gys[:-1], self._likes), token)
            gx = gy * slope
        return tuple((gx, token)[i] for i in indexes)

    @abstractmethod
    def slope(self, x: Variable, token: Variable) -> tuple[Variable, Variable]:
        """Return dy/dx, shaped as `x`, and the token that comes after it. Collective."""

    def _total(self) -> Communication:
        """Return what gives every rank the sum of all gradients of y."""
        if self.route.root is EVERY_RANK:
            return AllReduce(self.comm)
        return Bcast(self.comm, Route(root=self.route.root))


class Extreme(Reduction):
    """The largest or the smallest. Ranks whose values tie share the gradient equally."""

    def slope(self, x: Variable, token: Variable) -> tuple[Variable, Variable]:
        y = self.comm.allreduce(x.array, self.route.op)
        is_extreme = (x.array == y).astype(x.dtype)
        xp, count = module_of(y), self.comm.allreduce(is_extreme)
        # no rank has a NaN that is equal to itself
        return xp.asarray(is_extreme / xp.maximum(count, 1), x.dtype), token


class Product(Reduction):
    """The product; its slope is the product of the *other* ranks' values, zeros or not."""

    def slope(self, x: Variable, token: Variable) -> tuple[Variable, Variable]:
        *xs, token = AllGather(self.comm).run((x,), token)
        del xs[self.comm.rank]
        one = module_of(x.array).ones_like(x.array)
        return functools.reduce(operator.mul, xs) if xs else one, token


NONLINEAR: dict[str, type[Reduction]] = {'max': Extreme, 'min': Extreme, 'prod': Product}
