"""A stack of recurrent layers that is cut over ranks: states go from one part to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import chainer
from chainer.links.rnn.n_step_rnn import NStepRNNBase

from mnx.errors import ArgumentError
from mnx.functions import linear
from mnx.functions.connect import DELEGATE, anchored_token
from mnx.functions.node import Route
from mnx.links.outputs import connected, values_in
from mnx.links.routes import Hop

if TYPE_CHECKING:
    from mnx.communicators import Communicator

_CALL = 'create_multi_node_n_step_rnn'


class MultiNodeNStepRNN(chainer.Chain):
    """What `create_multi_node_n_step_rnn` returns.

    Attributes
    ----------
    actual_rnn : chainer.links.NStepLSTM or another of its kind
    rank_in, rank_out : int or None
    """

    def __init__(
        self,
        actual_link: Any,
        communicator: Communicator,
        rank_in: int | None,
        rank_out: int | None,
    ) -> None:
        super().__init__()
        with self.init_scope():
            self.actual_rnn = actual_link
        self.communicator = communicator
        self.rank_in, self.rank_out = rank_in, rank_out

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Receive the initial states, run, and send the final states.

        Parameters
        ----------
        *inputs
            As the actual link takes them, without the initial states: usually the list of
            sequences, (length, in_size) each.

        Returns
        -------
        tuple
            What the actual link returns (``hy, cy, ys`` of an LSTM, ``hy, ys`` of the others),
            and the delegate variable; None in its place if `rank_out` is.
        """
        token: Any = anchored_token([*values_in(inputs), *self.params()])
        states: list[Any] = [None] * self.actual_rnn.n_cells
        if self.rank_in is not None:
            for i in range(len(states)):
                node = linear.Recv(self.communicator, Route(peer=self.rank_in))
                states[i], token = node.run((), token)
        outputs = self.actual_rnn(*states, *inputs)
        if self.rank_out is None:
            return (*connected(token, tuple(outputs)), None)
        for state in outputs[: len(states)]:
            (token,) = linear.Send(self.communicator, Route(peer=self.rank_out)).run([state], token)
        token.name = DELEGATE
        return (*connected(token, tuple(outputs)), token)

    def hops(self) -> tuple[Hop, ...]:
        """Return the messages of one call, for a `MultiNodeChainList` around it."""
        states = (None,) * self.actual_rnn.n_cells
        came = [] if self.rank_in is None else [Hop('recv', self.rank_in) for _ in states]
        went = [] if self.rank_out is None else [Hop('send', self.rank_out) for _ in states]
        return (*came, *went)


def create_multi_node_n_step_rnn(
    actual_link: chainer.Link,
    communicator: Communicator,
    rank_in: SupportsIndex | None = None,
    rank_out: SupportsIndex | None = None,
) -> MultiNodeNStepRNN:
    """Wrap a stack of recurrent layers so that its states come from and go to other ranks.

    Parts of a long sequence, or encoder and decoder, can so stand on different ranks: the final
    states of one become the initial states of the next, and their gradients come back.

    Parameters
    ----------
    actual_link : chainer.links.NStepLSTM, NStepGRU, NStepRNNTanh, NStepRNNReLU or NStepBi...
    communicator : Communicator
    rank_in : int, optional
        Whom the initial states come from. Default: they are zeros.
    rank_out : int, optional
        Whom the final states go to.

    Returns
    -------
    MultiNodeNStepRNN
        Called with the inputs of `actual_link` without the initial states.

    Raises
    ------
    ArgumentError
        `actual_link` is something else, or a rank is this one, or none.

    Notes
    -----
    Each state travels alone: `send` and `recv` of `mnx.functions` may stand on the other side.
    The outputs depend on the delegate variable: backward from any of them is enough.

    Examples
    --------
    >>> import chainer, mnx
    >>> comm = mnx.create_communicator('local')
    >>> rnn = mnx.links.create_multi_node_n_step_rnn(chainer.links.NStepGRU(1, 3, 2, 0.0), comm)
    >>> hy, ys, delegate = rnn([chainer.Variable(rnn.xp.zeros((4, 3), 'f'))])
    >>> hy.shape, ys[0].shape, delegate
    ((1, 1, 2), (4, 2), None)
    """
    if not isinstance(actual_link, NStepRNNBase):
        raise ArgumentError(
            f'{_CALL}: expected NStepLSTM, NStepGRU, NStepRNNTanh, NStepRNNReLU or one of their '
            f'bidirectional forms but got {type(actual_link).__name__}.'
        )
    source = _peer(communicator, 'rank_in', rank_in)
    return MultiNodeNStepRNN(
        actual_link, communicator, source, _peer(communicator, 'rank_out', rank_out)
    )


def _peer(comm: Communicator, name: str, rank: SupportsIndex | None) -> int | None:
    if rank is None:
        return None
    peer = comm._rank(_CALL, name, rank)
    if peer == comm.rank:
        raise ArgumentError(f'{_CALL}: {name}={peer} is this rank itself. Name another one.')
    return peer
