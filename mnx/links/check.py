"""What is wrong with the routes of a model over several ranks, said so that one finds it."""

from __future__ import annotations

from mnx.errors import MismatchError
from mnx.links import drawing
from mnx.links.drawing import Place
from mnx.links.routes import (
    End,
    Program,
    Tables,
    known_programs,
    left_over,
    partners,
    stuck,
)

MOST_FAULTS = 10  # in words


def check(tables: Tables) -> None:
    """Raise if the plan hangs, forward or backward, or leaves a message behind.

    A pure function of the tables of all ranks, so every rank raises the same error, or none.

    Raises
    ------
    MismatchError
        Draws the routes, marks the odd ones, and says what is wrong with each.
    """
    plans = known_programs(tables)
    faults = [*_messages_alone(plans), *_queues(tables)] or _deadlock(plans)
    if faults:
        lines = list(dict.fromkeys(fault for _, fault in faults))
        if len(lines) > MOST_FAULTS:
            lines[MOST_FAULTS:] = [f'... and {len(lines) - MOST_FAULTS} more like these.']
        drawn = drawing.excerpt(tables, {place for place, _ in faults})
        title = 'MultiNodeChainList: the routes do not fit together.'
        raise MismatchError('\n'.join([title, drawn, *lines]))


def _messages_alone(plans: list[Program]) -> list[tuple[Place, str]]:
    alone = [end for end, other in partners(plans).items() if other is None]
    alone.sort(key=lambda end: (end.rank, end.step))
    return [((end.rank, end.component), _sentence(end) + _hint(end, alone)) for end in alone]


def _sentence(end: End) -> str:
    if end.kind == 'send':
        return f'{drawing.place(end)} sends to rank {end.peer}, which does not receive it.'
    return f'{drawing.place(end)} waits for rank {end.peer}, which sends it nothing.'


def _hint(end: End, alone: list[End]) -> str:
    """Return a guess: one end of the lost message names a wrong rank."""
    for other in alone:
        if other.kind == end.kind:
            continue
        if other.peer == end.rank:  # the other one means us: it is we who name a wrong rank
            return f' Is its {_argument(end)} meant to be {other.rank}?'
        if other.rank == end.peer:
            return f' Is the {_argument(other)} of {drawing.place(other)} meant to be {end.rank}?'
    return ' Add the component on the other side, or take this one away.'


def _argument(end: End) -> str:
    return 'rank_out' if end.kind == 'send' else 'rank_in'


def _queues(tables: Tables) -> list[tuple[Place, str]]:
    return [
        ((rank, i), f'rank {rank} #{i} keeps an output for its own rank, where nothing takes it.')
        for rank, table in enumerate(tables)
        for i in left_over(rank, table)
    ]


def _deadlock(plans: list[Program]) -> list[tuple[Place, str]]:
    """Every message has two ends, but in an order in which the ranks wait in a circle."""
    waiting = {end.rank: end for end in stuck(plans)}
    if not waiting:
        return []
    circle = _circle(waiting)
    lines = ['All wait for each other:', *(f'  {_wait(end)}' for end in circle)]
    if not stuck(plans, buffered=True):
        lines.append('Only short messages, which MPI buffers, would pass: it is an error anyway.')
    lines.append('Change the order of the components, or of the ranks in a list, on one of them.')
    return [((end.rank, end.component), '\n'.join(lines)) for end in circle]


def _circle(waiting: dict[int, End]) -> list[End]:
    """Return the ranks that wait for one another, from the lowest one that is found."""
    seen: list[int] = []
    rank = min(waiting)
    while rank not in seen:
        seen.append(rank)
        rank = waiting[rank].peer
    return [waiting[r] for r in seen[seen.index(rank) :]]


def _wait(end: End) -> str:
    if end.kind == 'send':
        return f'{drawing.place(end)} sends to rank {end.peer}'
    return f'{drawing.place(end)} waits for rank {end.peer}'
