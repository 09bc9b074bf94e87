"""The routes of a model over several ranks as text and as a graph: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mnx.links.routes import Component, End, Tables, partners, programs

Place = tuple[int, int]  # rank, component


MOST_LINES = 60  # of an error


def excerpt(tables: Tables, odd: Collection[Place]) -> str:
    """Return `text`; if that is long, of the first odd ranks and those they talk to only."""
    if sum(map(len, tables)) <= MOST_LINES:
        return text(tables, odd)
    shown: set[int] = set()
    for rank in sorted({rank for rank, _ in odd}):
        hops = [hop for component in tables[rank] for hop in component.hops(rank)]
        more = shown | {rank} | {hop.peer for hop in hops}
        if shown and sum(len(tables[r]) for r in more) > MOST_LINES:
            break
        shown = more
    lines = [
        line
        for line, (rank, _) in zip(text(tables, odd).splitlines(), _places(tables), strict=True)
        if rank in shown
    ]
    return '\n'.join([*lines[:MOST_LINES], f'  ... of {len(tables)} ranks'])


def text(tables: Tables, odd: Collection[Place] = ()) -> str:
    """Return one line for each component: rank, number, link, sources, destinations.

    Those in `odd` are marked. What has no other end is followed by a question mark.

    >>> print(text([(Component('A', None, (1,)), Component('C', (1,))),
    ...             (Component('B', (0,), (0,)),)]))
      rank 0  #0 A  inputs     -> rank 1 #0
      rank 0  #1 C  rank 1 #0  -> output
      rank 1  #0 B  rank 0 #0  -> rank 0 #1
    """
    ends = _ends(tables)
    rows = [
        ((rank, i), f'#{i} {component.name}', *_ways(rank, component, ends.get((rank, i), ())))
        for rank, i in _places(tables)
        for component in [tables[rank][i]]
    ]
    names = max((len(name) for _, name, _, _ in rows), default=0)
    froms = max((len(source) for _, _, source, _ in rows), default=0)
    width = len(str(len(tables) - 1))
    return '\n'.join(
        f'{">" if place in odd else " "} rank {place[0]:{width}}  {name:{names}}  '
        f'{source:{froms}}  -> {dest}'
        for place, name, source, dest in rows
    )


def dot(tables: Tables) -> str:
    """Return the graph in the language of Graphviz: a cluster for each rank.

    References
    ----------
    https://graphviz.org/doc/info/lang.html
    """
    lines = ['digraph model {', '  rankdir=LR; node [shape=box];']
    for rank, table in enumerate(tables):
        nodes = [f'"{rank}.{i}" [label="{c.name}"];' for i, c in enumerate(table)]
        lines.append(f'  subgraph cluster_{rank} {{ label="rank {rank}"; {" ".join(nodes)} }}')
    lines += [f'  {edge};' for edge in _edges(tables)]
    return '\n'.join([*lines, '}'])


def place(end: End) -> str:
    """Return where an end of a message is."""
    return f'rank {end.rank} #{end.component}'


def _places(tables: Tables) -> list[Place]:
    return [(rank, i) for rank, table in enumerate(tables) for i in range(len(table))]


def _ends(tables: Tables) -> dict[Place, list[tuple[End, End | None]]]:
    """Return each component's ends of messages, with their other ends."""
    plans = programs(tables)
    other = partners(plans)
    found: dict[Place, list[tuple[End, End | None]]] = {}
    for end in (end for steps in plans for end in steps):
        found.setdefault((end.rank, end.component), []).append((end, other[end]))
    return found


def _ways(
    rank: int, component: Component, ends: Sequence[tuple[End, End | None]]
) -> tuple[str, str]:
    """Return sources and destinations in words, in order; what the link itself does is inside."""
    came = [_word(end, other) for end, other in ends if end.kind == 'recv']
    went = [_word(end, other) for end, other in ends if end.kind == 'send']
    sources = _inserted(rank, component.sources, came)
    n_inner = sum(hop.kind == 'send' for hop in component.inside(rank))
    dests = went[:n_inner] + _inserted(rank, component.dests, went[n_inner:])
    if component.sources is None:
        sources.insert(0, 'inputs')
    if component.dests is None:
        dests.append('output')
    return ', '.join(sources), ', '.join(dests)


def _inserted(rank: int, ranks: Sequence[int] | None, words: list[str]) -> list[str]:
    """Return `words`, which tell of the other ranks, with this rank's own queue in its places."""
    rest = iter(words)
    return ['own queue' if r == rank else next(rest) for r in ranks or ()] + list(rest)


def _word(end: End, other: End | None) -> str:
    return f'rank {end.peer} ?' if other is None else place(other)


def _edges(tables: Tables) -> list[str]:
    edges = []
    for rank, table in enumerate(tables):
        queue: list[int] = []
        for i, component in enumerate(table):
            if component.sources is None:
                edges.append(f'"inputs of rank {rank}" -> "{rank}.{i}"')
            if component.dests is None:
                edges.append(f'"{rank}.{i}" -> "output of rank {rank}"')
            n_taken = (component.sources or ()).count(rank)
            edges += [f'"{rank}.{j}" -> "{rank}.{i}"' for j in queue[:n_taken]]
            del queue[:n_taken]
            queue += [i] * (component.dests or ()).count(rank)
    for ends in _ends(tables).values():
        for end, other in ends:
            if end.kind == 'send':
                to = f'{other.rank}.{other.component}' if other else f'nobody on rank {end.peer}'
                edges.append(f'"{end.rank}.{end.component}" -> "{to}"')
            elif other is None:
                edges.append(f'"nobody on rank {end.peer}" -> "{end.rank}.{end.component}"')
    return edges
