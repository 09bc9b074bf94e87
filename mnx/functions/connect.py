"""Edges of the graph that carry nothing: they make one variable depend on another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import chainer

from mnx.arrays import Array, module_of
from mnx.functions.node import (
    Input,
    Like,
    Variable,
    as_variable,
    empty_array,
    filled,
    new_token,
)

DELEGATE = 'delegate_variable'


class Connect(chainer.FunctionNode):
    """(d, x1 .. xk) -> (x1 .. xk). Adjoint: Disconnect."""

    def forward(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        self._likes = [Like.of(x) for x in inputs]
        return inputs[1:]

    def backward(
        self, indexes: Sequence[int], gys: Sequence[Variable | None]
    ) -> tuple[Variable, ...]:
        gxs = Disconnect(self._likes[0]).apply(filled(gys, self._likes[1:]))
        return tuple(gxs[i] for i in indexes)


class Disconnect(chainer.FunctionNode):
    """(x1 .. xk) -> (zeros like d, x1 .. xk). Adjoint: Connect."""

    def __init__(self, delegate: Like) -> None:
        self._delegate = delegate

    def forward(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        self._likes = [self._delegate, *map(Like.of, inputs)]
        return self._delegate.zeros().array, *inputs

    def backward(
        self, indexes: Sequence[int], gys: Sequence[Variable | None]
    ) -> tuple[Variable, ...]:
        gxs = Connect().apply(filled(gys, self._likes))
        return tuple(gxs[i] for i in indexes)


class Anchor(chainer.FunctionNode):
    """(x1 .. xk) -> token. The gradients are zeros, made only if they may be differentiated."""

    def forward(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        token = empty_array(inputs)
        self._likes, self._token = [Like.of(x) for x in inputs], Like.of(token)
        return (token,)

    def backward(
        self, indexes: Sequence[int], gys: Sequence[Variable | None]
    ) -> tuple[Variable | None, ...]:
        if not chainer.config.enable_backprop:
            return (None,) * len(indexes)
        gtoken = filled(gys, [self._token])
        return tuple(Disconnect(self._likes[i]).apply(gtoken)[0] for i in indexes)


def pseudo_connect(delegate_variable: Input | None, *actual_variables: Input) -> tuple[Any, ...]:
    """Return variables equal to the actual ones which also depend on the delegate variable.

    Their backward passes go on to the delegate variable, with a gradient of zeros. This is how a
    rank takes part in the backward pass of a communication whose result its loss does not use,
    and how several `send` become one variable to call ``backward`` on.

    Parameters
    ----------
    delegate_variable : Variable, array or None
        Any shape and dtype: usually what `send` or, off the root, `gather` returned.
    *actual_variables : Variable or array

    Returns
    -------
    tuple of Variable
        As many as were given.

    Examples
    --------
    >>> import numpy as np
    >>> loss = chainer.Variable(np.float32([3]))
    >>> delegate = chainer.Variable(np.zeros(2, 'f'))
    >>> loss, = pseudo_connect(delegate, loss)
    >>> loss.grad = np.float32([1])
    >>> loss.backward()
    >>> delegate.grad
    array([0., 0.], dtype=float32)
    """
    if not actual_variables:
        return ()
    actual = [as_variable(x, 'pseudo_connect') for x in actual_variables]
    delegate = new_token(actual) if delegate_variable is None else delegate_variable
    return tuple(Connect().apply((as_variable(delegate, 'pseudo_connect'), *actual)))


def token_after(delegates: Iterable[object]) -> Variable:
    """Return a token that depends on those of `delegates` that are variables with values."""
    token = new_token()
    for x in delegates:
        if isinstance(x, chainer.Variable) and x.array is not None:
            (token,) = pseudo_connect(x, token)
    return token


def anchored_token(values: Iterable[object]) -> Variable | None:
    """Return a token that depends on those of `values` that need a gradient; None if none does.

    A communication that takes it is reached by the backward pass of a backward pass from any of
    their gradients, though it has nothing else to differentiate on this rank.
    """
    xs = [x for x in values if isinstance(x, chainer.Variable) and x.array is not None]
    xs = [x for x in xs if x.requires_grad and x.dtype.kind not in 'biu']
    xs = [x for x in xs if module_of(x.array) is module_of(xs[0].array)]
    return Anchor().apply(xs)[0] if xs else None
