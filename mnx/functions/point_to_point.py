"""Differentiable messages from one rank to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, SupportsIndex

import chainer

from mnx.errors import ArgumentError, DtypeError
from mnx.functions import linear
from mnx.functions.connect import DELEGATE, token_after
from mnx.functions.node import Input, Route, Variable

if TYPE_CHECKING:
    from mnx.communicators import Communicator


def send(
    x: Input | Sequence[Input],
    communicator: Communicator,
    rank: SupportsIndex,
    tag: SupportsIndex = 0,
) -> Variable:
    """Send one or several variables to another rank, which calls `recv`.

    Adjoint: `recv`. In backward the gradients of `x` come back from that rank, so both call
    backward: this one on what `send` returns, or on a variable that `pseudo_connect` made depend
    on it.

    Parameters
    ----------
    x : Variable or array, or a list or tuple of them
        Of any dtypes and shapes. A single one in a list is sent as if it were alone.
    communicator : Communicator
    rank : int
        The receiver.
    tag : int

    Returns
    -------
    Variable
        The *delegate variable*: float32, length zero, of this rank's graph.

    Raises
    ------
    ArgumentError
        `rank` is this rank, or none; or there is nothing to send.
    """
    _check_peer(communicator, 'send', rank)
    xs = x if isinstance(x, (list, tuple)) else [x]
    if not xs:
        raise ArgumentError('send: needs at least one variable but got an empty sequence.')
    (delegate,) = linear.Send(communicator, Route(peer=rank, tag=tag)).run(xs)
    delegate.name = DELEGATE
    return delegate


def recv(
    communicator: Communicator,
    rank: SupportsIndex,
    delegate_variable: Variable | None = None,
    tag: SupportsIndex = 0,
    force_tuple: bool = False,
) -> Variable | tuple[Variable, ...]:
    """Receive what another rank has sent by `send`.

    Adjoint: `send`. In backward the gradients of what was received go to that rank.

    Parameters
    ----------
    communicator : Communicator
    rank : int
        The sender.
    delegate_variable : Variable, optional
        What is received depends on it: the backward pass goes on to it, with a gradient of zeros.
        Usually that of an earlier `send` of this rank.
    tag : int
    force_tuple : bool
        Return a tuple also of a single variable.

    Returns
    -------
    Variable or tuple of Variable
        A tuple if several were sent.

    Raises
    ------
    ArgumentError
        `rank` is this rank, or none.
    DtypeError
        `delegate_variable` is something else.
    """
    rank = communicator._rank('recv', 'rank', rank)  # ANY_SOURCE would have no way back
    _check_peer(communicator, 'recv', rank)
    if not isinstance(delegate_variable, (chainer.Variable, type(None))):
        raise DtypeError(
            'recv: delegate_variable is one variable, such as send returns, but got '
            f'{type(delegate_variable).__name__}. Make several one by pseudo_connect.'
        )
    if delegate_variable is not None and delegate_variable.name is None:
        delegate_variable.name = DELEGATE
    node = linear.Recv(communicator, Route(peer=rank, tag=tag))
    *ys, _ = node.run((), token_after([delegate_variable]))
    return tuple(ys) if force_tuple or len(ys) > 1 else ys[0]


def _check_peer(comm: Communicator, call: str, rank: SupportsIndex) -> None:
    if rank == comm.rank:
        raise ArgumentError(
            f'{call}: rank {comm.rank} cannot exchange messages with itself. '
            'Use the variable itself.'
        )
