"""A model whose parts stand on several ranks."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias, cast

import chainer

from mnx.errors import ArgumentError, DtypeError
from mnx.functions import linear
from mnx.functions.connect import DELEGATE, anchored_token
from mnx.functions.node import Route, Variable, new_token
from mnx.links import drawing
from mnx.links.check import check
from mnx.links.n_step_rnn import MultiNodeNStepRNN
from mnx.links.outputs import connected, received, sendable, values_in
from mnx.links.routes import Component, Hop, Table, queued

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Ranks: TypeAlias = 'SupportsIndex | Sequence[SupportsIndex] | None'

_CALL = 'MultiNodeChainList'


@dataclass(frozen=True)
class Part:
    """A component of this rank: which child it calls, and its ends of the routes."""

    child: int
    sources: tuple[int, ...] | None
    dests: tuple[int, ...] | None


class MultiNodeChainList(chainer.ChainList):
    """A model whose parts stand on several ranks, as a list of components on each.

    Every rank makes one, adds the components that stand on it, and calls it. The components of a
    rank run in the order in which they were added: each receives its inputs, calls its link, and
    sends its output. In backward the gradients take the same ways back, in the exactly reverse
    order.

    Parameters
    ----------
    comm : Communicator

    Notes
    -----
    *What a call returns* depends on this rank's components with ``rank_out=None``: with one of
    them its output; with several a tuple of their outputs, in the order in which they were added;
    with none the *delegate variable*, of length zero. Call ``backward`` on it, or on a loss made
    from it, on every rank: from any of the outputs it reaches all of this rank's components.

    *Collective*: all ranks of `comm` call it. Before the first call, and before one for which
    components were added on any rank, all ranks compare their routes. A message without its other
    end, an output that nobody takes, or an order in which ranks would wait for each other raises
    the same `MismatchError` on every rank, which draws the routes. Sends count as synchronous in
    this, since long messages are. ``MNX_CHECK=0`` leaves the question "has anything changed?" out
    of all calls but the first.

    Examples
    --------
    A multi-layer perceptron on two ranks; rank 0 has the data and computes the loss::

        model = mnx.links.MultiNodeChainList(comm)
        if comm.rank == 0:
            model.add_link(L.Linear(784, 100), rank_out=1)
            model.add_link(Softmax(), rank_in=1)
        else:
            model.add_link(MLP(100, 10), rank_in=0, rank_out=0)
        y = model(x) if comm.rank == 0 else model()

    On one rank, through its own queue:

    >>> import mnx, numpy as np
    >>> model = MultiNodeChainList(mnx.create_communicator('local'))
    >>> model.add_link(chainer.links.Linear(3, 2), rank_out=0)
    >>> model.add_link(chainer.links.Linear(2, 1), rank_in=0)
    >>> model(np.zeros((5, 3), 'f')).shape
    (5, 1)
    """

    def __init__(self, comm: Communicator) -> None:
        super().__init__()
        self._comm = comm
        self._parts: tuple[Part, ...] = ()
        self._tables: list[Table] = []  # of all ranks, when they were last compared
        self._enclosed = False  # in another one, which compares the routes of both

    def add_link(self, link: chainer.Link, rank_in: Ranks = None, rank_out: Ranks = None) -> None:
        """Add a component to this rank.

        Parameters
        ----------
        link : chainer.Link
            Called with one argument for each rank of `rank_in`, or with the inputs of the model.
            A link that was added before shares its parameters with that component.
        rank_in : int, list of int, or None
            Whom to receive from, in this order. This rank itself means: take the oldest output
            that an earlier component gave to this rank. None: the inputs of the model.
        rank_out : int, list of int, or None
            Whom to send the output to, in this order. This rank itself means: keep it for a later
            component. None: the output is one of the model. A rank may be named twice.

        Raises
        ------
        ArgumentError
            There is no such rank; a list is empty; nothing waits on this rank for `rank_in`.
        DtypeError
            `link` is no link, or a rank no integer.

        Notes
        -----
        A variable arrives as a variable, a tuple or list of several as a tuple.
        """
        if not isinstance(link, chainer.Link):
            raise DtypeError(
                f'{_CALL}.add_link: expected a chainer.Link but got {type(link).__name__}. '
                'Put a function into a chainer.Sequential.'
            )
        sources, dests = self._ranks('rank_in', rank_in), self._ranks('rank_out', rank_out)
        rank, table = self._comm.rank, self._table()
        if (sources or ()).count(rank) > len(queued(rank, table)):
            raise ArgumentError(
                f'{_CALL}.add_link: rank_in={rank_in!r} on rank {rank} itself, but no earlier '
                f'component has given an output to it. Add that one before, with rank_out={rank}.'
            )
        self._parts = (*self._parts, Part(self._child(link), sources, dests))

    def forward(self, *inputs: Any) -> Any:
        """Run this rank's components. Collective: all ranks call it.

        Parameters
        ----------
        *inputs
            For each component with ``rank_in=None``, all of them.

        Returns
        -------
        Variable, tuple, or what the link of the only output returns
            See the notes of the class.

        Raises
        ------
        MismatchError
            The routes of the ranks do not fit together (on all ranks).
        """
        if not self._enclosed:
            self._compare_routes()
        return self._run(inputs)

    def describe(self, style: str = 'text') -> str:
        """Return the components of all ranks and the messages between them.

        Collective until all ranks have called the model; then it tells what was compared last.

        Parameters
        ----------
        style : {'text', 'dot'}
            One line for each component, or a graph for Graphviz.

        Examples
        --------
        >>> import mnx
        >>> model = MultiNodeChainList(mnx.create_communicator('local'))
        >>> model.add_link(chainer.links.Linear(3, 2), rank_out=0)
        >>> model.add_link(chainer.Sequential(chainer.functions.relu), rank_in=0)
        >>> print(model.describe())
          rank 0  #0 Linear  inputs     -> own queue
          rank 0  #1 relu    own queue  -> output
        """
        drawings = {'text': drawing.text, 'dot': drawing.dot}
        if style not in drawings:
            raise ArgumentError(f"describe: expected 'text' or 'dot' but got {style!r}.")
        tables = self._tables or self._comm.allgather_obj(self._table())
        return drawings[style](tables)

    def _run(self, inputs: tuple[Any, ...]) -> Any:
        token = anchored_token([*values_in(inputs), *self.params()])
        traffic, outputs = Traffic(self._comm, token), []
        for part in self._parts:
            xs = inputs if part.sources is None else map(traffic.take, part.sources)
            y = self[part.child](*xs)
            if part.dests is None:
                outputs.append(y)
            for dest in part.dests or ():
                traffic.give(y, dest)
        if not outputs:
            return traffic.delegate()
        return connected(traffic.token, outputs[0] if len(outputs) == 1 else tuple(outputs))

    def _compare_routes(self) -> None:
        own = self._table()
        known = self._tables[self._comm.rank] == own if self._tables else False
        if known and not self._comm.meetings.checks:
            return
        if not self._comm.agree(known):
            self._tables = []
            tables = self._comm.allgather_obj(own)
            check(tables)
            self._tables = tables

    def _table(self) -> Table:
        return tuple(self._row(part, self[part.child]) for part in self._parts)

    def _row(self, part: Part, link: chainer.Link) -> Component:
        """Return a component with what its link communicates by itself, where it tells."""
        row = Component(_name(link), part.sources, part.dests)
        if isinstance(link, MultiNodeChainList) and link._comm is self._comm:
            return replace(row, nested=link._table())
        if isinstance(link, MultiNodeNStepRNN) and link.communicator is self._comm:
            return replace(row, inner=link.hops())
        return replace(row, hidden=tuple(self._hidden_in(link)))

    def _hidden_in(self, link: chainer.Link) -> Iterator[Hop]:
        for inside in link.links(skipself=True):
            if isinstance(inside, MultiNodeNStepRNN) and inside.communicator is self._comm:
                yield from inside.hops()
            elif isinstance(inside, MultiNodeChainList) and inside._comm is self._comm:
                for component in inside._table():
                    yield from component.hops(self._comm.rank)

    def _child(self, link: chainer.Link) -> int:
        """Return the place of `link` among the children; it becomes one if it is not."""
        for i, child in enumerate(self.children()):
            if child is link:
                return i
        super().add_link(link)
        for inside in link.links():  # the link itself, too
            if isinstance(inside, MultiNodeChainList) and inside._comm is self._comm:
                inside._enclosed = True
        return len(self) - 1

    def _ranks(self, name: str, ranks: Ranks) -> tuple[int, ...] | None:
        if ranks is None:
            return None
        alone = not isinstance(ranks, Iterable) or getattr(ranks, 'ndim', 1) == 0
        given: list[Any] = [ranks] if alone else list(cast('Iterable[Any]', ranks))
        if not given:
            raise ArgumentError(
                f'{_CALL}.add_link: {name} is empty, expected a rank, some ranks, or None. '
                'None means the inputs or outputs of the model.'
            )
        try:
            numbers = [operator.index(rank) for rank in given]
        except TypeError:
            raise DtypeError(
                f'{_CALL}.add_link: {name} is not made of ranks, expected integers but got '
                f'{ranks!r}. None means the inputs or outputs of the model.'
            ) from None
        return tuple(self._comm._rank(f'{_CALL}.add_link', name, rank) for rank in numbers)


class Traffic:
    """The messages of one call on this rank, one after another.

    Each node takes the token of the one before. So backward passes through all of them, though an
    input may not be used, or a loss not depend on what was sent.

    Parameters
    ----------
    comm : Communicator
    token : Variable or None
        For the first node. None: it makes one, beside its arrays.
    """

    def __init__(self, comm: Communicator, token: Variable | None) -> None:
        self._comm = comm
        self._queue: deque[Any] = deque()
        self.token = token

    def take(self, rank: int) -> Any:
        """Return what `rank` gives: a variable, or a tuple of several."""
        if rank == self._comm.rank:
            return received(self._queue.popleft())
        node = linear.Recv(self._comm, Route(peer=rank))
        *ys, self.token = node.run((), self.token)
        return received(ys)

    def give(self, y: Any, rank: int) -> None:
        """Send `y`, or keep it if `rank` is this one."""
        xs = sendable(y, _CALL)
        if rank == self._comm.rank:
            self._queue.append(xs)
        else:
            (self.token,) = linear.Send(self._comm, Route(peer=rank)).run(xs, self.token)

    def delegate(self) -> Variable:
        """Return the last token, for a rank that has nothing else to call backward on."""
        delegate = new_token() if self.token is None else self.token
        delegate.name = DELEGATE
        return delegate


def _name(link: chainer.Link) -> str:
    """Return what to call a component: Linear, or Linear+relu of a Sequential."""
    if isinstance(link, chainer.Sequential) and len(link):
        return '+'.join(getattr(layer, '__name__', type(layer).__name__) for layer in link)
    return type(link).__name__
