"""Where the messages of a model over several ranks go, and whether they arrive: pure functions.

Each rank runs the components of its table in order. A component receives from its sources, calls
its link, and sends to its destinations::

    rank 0    Conv    inputs ──► rank 1        send 1, recv 1        the program of rank 0
              Loss    rank 1 ──► output
    rank 1    MLP     rank 0 ──► rank 0        recv 0, send 0        the program of rank 1

`stuck` runs the programs against each other with *synchronous* sends: one ends when its receive
begins. MPI may buffer short messages, so some plans that fail here would pass until a message gets
longer; these fail, too. The backward pass is the same programs in reverse, send and receive
exchanged. With synchronous sends a plan passes one way exactly if it passes the other way (the same
pairs meet, last pair first), so one check is enough for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal['send', 'recv']


@dataclass(frozen=True)
class Hop:
    """One end of a message between two ranks."""

    kind: Kind
    peer: int


@dataclass(frozen=True)
class Component:
    """A row of a rank's table.

    Attributes
    ----------
    name : str
        Of the class of its link.
    sources : tuple of int, or None
        Whom it receives from, in order; None: it gets the inputs of the model.
    dests : tuple of int, or None
        Whom it sends to, in order; None: its output is one of the model.
    inner : tuple of Hop
        What its link itself communicates while it is called.
    nested : tuple of Component
        If its link is a model of the same kind: the table of that.
    hidden : tuple of Hop
        What links inside of its link communicate, when that calls them: nobody knows how often,
        and in which order.
    """

    name: str
    sources: tuple[int, ...] | None = None
    dests: tuple[int, ...] | None = None
    inner: tuple[Hop, ...] = ()
    nested: tuple[Component, ...] = ()
    hidden: tuple[Hop, ...] = ()

    def hops(self, rank: int) -> Iterator[Hop]:
        """Yield its messages with other ranks, if it stands on `rank`."""
        yield from (Hop('recv', peer) for peer in self.sources or () if peer != rank)
        yield from self.inside(rank)
        yield from (Hop('send', peer) for peer in self.dests or () if peer != rank)

    def secrets(self) -> Iterator[Hop]:
        """Yield what is hidden in it, at any depth."""
        yield from self.hidden
        for component in self.nested:
            yield from component.secrets()

    def inside(self, rank: int) -> Iterator[Hop]:
        """Yield the messages of its link."""
        yield from self.inner
        for component in self.nested:
            yield from component.hops(rank)


Table = tuple[Component, ...]  # of one rank
Tables = Sequence[Table]  # of all ranks


@dataclass(frozen=True)
class End:
    """A step of a rank's program: one end of a message, by its place there."""

    rank: int
    step: int
    component: int
    kind: Kind
    peer: int


Program = list[End]


def program(rank: int, table: Table) -> Program:
    """Return what `rank` does, in order.

    >>> [(end.kind, end.peer) for end in program(0, (Component('A', None, (2, 0, 1)),))]
    [('send', 2), ('send', 1)]
    """
    hops = [(i, hop) for i, component in enumerate(table) for hop in component.hops(rank)]
    return [End(rank, step, i, hop.kind, hop.peer) for step, (i, hop) in enumerate(hops)]


def programs(tables: Tables) -> list[Program]:
    """Return the program of each rank."""
    return [program(rank, table) for rank, table in enumerate(tables)]


def known_programs(tables: Tables) -> list[Program]:
    """Return the program of each rank without messages whose other end may be a hidden one.

    >>> wrapped = Component('Chain', hidden=(Hop('send', 1),))
    >>> [[end.peer for end in steps]
    ...  for steps in known_programs([(wrapped,), (Component('RNN', (0,), (0,)),)])]
    [[], [0]]
    """
    secrets = {
        _way(rank, hop)
        for rank, table in enumerate(tables)
        for component in table
        for hop in component.secrets()
    }
    return [
        [end for end in steps if _way(end.rank, end) not in secrets] for steps in programs(tables)
    ]


def _way(rank: int, hop: Hop | End) -> tuple[int, int]:
    """Return from which rank to which other one a message goes."""
    return (rank, hop.peer) if hop.kind == 'send' else (hop.peer, rank)


def reversed_programs(forward: Sequence[Program]) -> list[Program]:
    """Return what the ranks do in backward: gradients go back, the last message first."""
    return [
        [
            End(e.rank, step, e.component, 'recv' if e.kind == 'send' else 'send', e.peer)
            for step, e in enumerate(reversed(steps))
        ]
        for steps in forward
    ]


def partners(plans: Sequence[Program]) -> dict[End, End | None]:
    """Return the other end of each message, or None where nobody sends or receives it.

    Messages between two ranks do not overtake each other: the k-th send meets the k-th receive.
    """
    sends: dict[tuple[int, int], list[End]] = defaultdict(list)
    recvs: dict[tuple[int, int], list[End]] = defaultdict(list)
    for end in (end for steps in plans for end in steps):
        if end.kind == 'send':
            sends[end.rank, end.peer].append(end)
        else:
            recvs[end.peer, end.rank].append(end)
    found: dict[End, End | None] = {}
    for way in {*sends, *recvs}:
        pairs = list(zip(sends[way], recvs[way], strict=False))
        alone = [*sends[way][len(pairs) :], *recvs[way][len(pairs) :]]
        found.update((end, None) for end in alone)
        found.update((send, recv) for send, recv in pairs)
        found.update((recv, send) for send, recv in pairs)
    return found


def stuck(plans: Sequence[Program], *, buffered: bool = False) -> list[End]:
    """Return where ranks wait for ever: one end for each such rank, none if all pass.

    Parameters
    ----------
    plans : sequence of list of End
    buffered : bool
        Sends do not wait for their receives, as MPI does with short messages.
    """
    places = [0] * len(plans)
    boxes: dict[tuple[int, int], int] = defaultdict(int)
    busy = list(range(len(plans)))

    def at(rank: int) -> End | None:
        return plans[rank][places[rank]] if places[rank] < len(plans[rank]) else None

    def advance(rank: int) -> None:
        places[rank] += 1
        busy.append(rank)

    while busy:
        end = at(busy.pop())
        other = None if end is None else at(end.peer)
        if end is None:
            continue
        if buffered and end.kind == 'send':
            boxes[end.rank, end.peer] += 1
            advance(end.rank)
            busy.append(end.peer)
        elif buffered and boxes[end.peer, end.rank]:
            boxes[end.peer, end.rank] -= 1
            advance(end.rank)
        elif not buffered and other and other.peer == end.rank and other.kind != end.kind:
            advance(end.rank)
            advance(end.peer)
    return [end for end in map(at, range(len(plans))) if end is not None]


def left_over(rank: int, table: Table) -> list[int]:
    """Return the components whose output, meant for their own rank, no later one takes.

    Also those with such a one inside.

    >>> left_over(0, (Component('A', None, (0, 0)), Component('B', (0,))))
    [0]
    """
    inside = [i for i, component in enumerate(table) if left_over(rank, component.nested)]
    return queued(rank, table) + inside


def queued(rank: int, table: Table) -> list[int]:
    """Return the components whose outputs wait for one of their own rank at the end of `table`."""
    queue: list[int] = []
    for i, component in enumerate(table):
        del queue[: (component.sources or ()).count(rank)]
        queue += [i] * (component.dests or ()).count(rank)
    return queue
