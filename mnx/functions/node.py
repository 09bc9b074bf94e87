"""Communication as a function: on each rank one node of Chainer's graph.

Every node takes a token last, and returns one last::

    forward      x1 .. xk, token  ──►  communicate  ──►  y1 .. ym, token
    backward    gx1 .. gxk, token ◄──   adjoint     ◄── gy1 .. gym, token

The objective is the *sum over ranks* of what each rank seeds its backward pass with. With it a
linear node needs to know its adjoint only, and the adjoint is a node like any other: so second and
higher derivatives come free, also across `send` and `recv`.

Whoever communicates in forward must do so in backward, on every rank, in an order that all ranks
share. Three things see to it:

- The token requires a gradient. So a node is part of the graph even where a rank gave it nothing
  that does, and part of backward even where its outputs were used in part only.
- A node's rank (Chainer runs backward by descending rank) is greater than that of every node before
  it: backward communicates in the *reverse order of the calls*, whatever the graphs look like.
  Ranks that could talk in one order can talk in the reverse one, too.
- The adjoint's token depends on the one that the node returned, and on its gradient. So the
  backward pass of a backward pass goes on from the adjoint to the node, and to the adjoints before
  it, on all ranks, though on some the loss may be linear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np

from mnx.arrays import Array, is_array, module_of
from mnx.errors import ArgumentError, DtypeError

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Variable = Any  # chainer.Variable; Chainer has no types
Input = Any  # a Variable or an array

EVERY_RANK: Any = object()  # instead of a root


@dataclass(frozen=True)
class Like:
    """Where an array lives, its shape and dtype."""

    xp: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @staticmethod
    def of(x: Array) -> Like:
        """Describe `x`."""
        return Like(module_of(x), x.shape, x.dtype)

    def zeros(self) -> Variable:
        """Return zeros as the array described."""
        return chainer.Variable(self.xp.zeros(self.shape, self.dtype), requires_grad=False)


def filled(gradients: Sequence[Variable | None], likes: Sequence[Like]) -> list[Variable]:
    """Return the gradients, with zeros for outputs that were not used."""
    return [like.zeros() if g is None else g for g, like in zip(gradients, likes, strict=True)]


def empty_array(beside: Sequence[Array] = ()) -> Array:
    """Return the array of a token: float32, length zero, where the arrays `beside` it live."""
    xp = module_of(beside[0]) if beside else np
    return xp.empty(0, np.float32)


def new_token(beside: Sequence[Variable] = ()) -> Variable:
    """Return a variable of length zero that requires a gradient."""
    return chainer.Variable(empty_array([x.array for x in beside]))


@dataclass(frozen=True)
class Route:
    """What a communication and its adjoint have in common; each one uses what it needs."""

    op: str = 'sum'
    root: Any = EVERY_RANK
    peer: Any = None
    tag: Any = 0
    weight: float = 1.0


class Communication(chainer.FunctionNode, ABC):
    """A function of the arrays of all ranks.

    Parameters
    ----------
    comm : Communicator
    route : Route
    """

    call: str
    adjoint: type[Communication]
    is_collective = True

    _latest = 0  # the rank of the latest node of this process

    def __init__(self, comm: Communicator, route: Route = Route()) -> None:
        self.comm = comm
        self.route = route
        # its number among the calls of this communicator, the same on all ranks; if it calls any
        self.turn: int | None = None
        self.adjoint_of: int | None = None  # the turn of the node of whose backward pass it is one
        self._rank = 0
        self._began = False

    @abstractmethod
    def communicate(self, xs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return what this rank receives for what it gives."""

    def forward(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        xs = inputs[:-1]
        self._began = True
        ys = self._communicate_in_turn(xs)
        self._likes = [Like.of(y) for y in ys]
        self.retain_outputs((len(ys),))
        return (*ys, empty_array(ys or xs))

    def backward(
        self, indexes: Sequence[int], gys: Sequence[Variable | None]
    ) -> tuple[Variable | None, ...]:
        node = self.counted(self.adjoint(self.comm, self.route))
        gxs = node.apply((*filled(gys[:-1], self._likes), self._token_of_adjoint(gys[-1])))
        return tuple(gxs[i] if self._is_differentiable(i) else None for i in indexes)

    def counted(self, node: Communication) -> Communication:
        """Return `node`, which belongs to the backward pass of this one, and now knows it."""
        node.adjoint_of = self.turn
        return node

    def _communicate_in_turn(self, xs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Communicate; ranks that are in the backward passes of different calls all raise."""
        meetings, before = self.comm.meetings, self.comm.meetings.sequence
        if self.adjoint_of is not None:
            meetings.about = f' (backward of #{self.adjoint_of})'
        try:
            return self.communicate(xs)
        finally:
            meetings.about = ''
            if meetings.sequence != before:
                self.turn = meetings.sequence

    def _token_of_adjoint(self, gtoken: Variable | None) -> Variable:
        """Return this node's own token, made dependent on its gradient, where it has one."""
        (token,) = self.get_retained_outputs()
        token.retain_data()  # Chainer does so only once, and forgets it with the first variable
        return token if gtoken is None else token + gtoken

    def _is_differentiable(self, index: int) -> bool:
        return self.inputs[index].dtype.kind not in 'biu'

    @property
    def rank(self) -> int:
        """Chainer's order of backward: the greatest first."""
        return self._rank

    @rank.setter
    def rank(self, deepest_input: int) -> None:
        self._rank = Communication._latest = max(deepest_input, Communication._latest + 1)

    def run(self, xs: Any, token: Variable | None = None) -> tuple[Variable, ...]:
        """Communicate the variables or arrays `xs`; return the results, a token last.

        What this rank cannot do is told to the ranks that have begun to.
        """
        try:
            given = [as_variable(x, self.call) for x in xs]
            return tuple(self.apply((*given, new_token(given) if token is None else token)))
        except Exception:
            if self.is_collective and not self._began:
                with self.comm._meet(self.call):
                    raise
            raise


def as_variable(x: Input, call: str) -> Variable:
    """Return `x` as a variable that holds an array."""
    if isinstance(x, chainer.Variable):
        if x.array is None:
            raise ArgumentError(
                f'{call}: the parameter {x.name!r} has no values yet. Initialise it before: call '
                'its link once, or give it the size of its input.'
            )
        return x
    if not is_array(x):
        raise DtypeError(
            f'{call}: needs a Variable or an array but got {type(x).__name__}. '
            'Pass numbers as arrays.'
        )
    return chainer.as_variable(np.asarray(x) if isinstance(x, np.generic) else x)
