from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mnx.links.routes import (
    Component,
    Hop,
    Table,
    left_over,
    partners,
    programs,
    reversed_programs,
    stuck,
)


def table(*rows: tuple[object, object]) -> Table:
    as_ranks = lambda r: r if r is None or isinstance(r, tuple) else (r,)  # noqa: E731
    return tuple(Component('L', as_ranks(a), as_ranks(b)) for a, b in rows)


def places(tables: list[Table], **options: bool) -> list[tuple[int, int]]:
    return [(end.rank, end.step) for end in stuck(programs(tables), **options)]


CHAIN = [table((None, 1)), table((0, 2)), table((1, None))]
CYCLE = [table((None, 1), (1, None)), table((0, 0))]
CROSSING = [table((None, 1), (1, None)), table((None, 0), (0, None))]


def test_the_program_of_a_rank() -> None:
    inner = (Hop('recv', 3), Hop('send', 3))
    row = Component('L', (1, 0, 2, 1), (0, 2, 2), inner)
    steps = [(end.kind, end.peer) for end in programs([(row,)])[0]]
    received = [('recv', 1), ('recv', 2), ('recv', 1)]
    assert steps == [*received, ('recv', 3), ('send', 3), ('send', 2), ('send', 2)]


def test_partners_in_order_of_the_messages() -> None:
    plans = programs([table((None, (1, 1))), table((0, None), (0, None), (0, None))])
    other = partners(plans)
    assert other[plans[0][1]] == plans[1][1]
    assert other[plans[1][0]] == plans[0][0]
    assert other[plans[1][2]] is None


def test_what_passes() -> None:
    assert places(CHAIN) == places(CYCLE) == places([table((None, (0, 0)), ((0, 0), None))]) == []
    assert places([]) == places([()]) == []


def test_a_crossing_passes_only_if_messages_are_buffered() -> None:
    assert places(CROSSING) == [(0, 0), (1, 0)]
    assert places(CROSSING, buffered=True) == []
    unrolled = [CROSSING[0], CROSSING[1][::-1]]
    assert places(unrolled) == []


def test_a_circle_of_receives_never_passes() -> None:
    circle = [table((1, 1)), table((0, 0))]
    assert places(circle) == places(circle, buffered=True) == [(0, 0), (1, 0)]


def test_left_over() -> None:
    assert left_over(2, table((None, (2, 2)), (2, 2), (2, None))) == [1]
    assert left_over(2, table((None, (0, 1)))) == []


messages = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8)


@given(messages, st.randoms(use_true_random=False), st.booleans())
def test_forward_passes_exactly_if_backward_does(pairs, random, shuffled) -> None:
    """And whatever order the messages have, if all ranks have them in that order, they pass."""
    pairs = [(a, b) for a, b in pairs if a != b]
    hops: list[list[Hop]] = [[] for _ in range(4)]
    for a, b in pairs:
        hops[a].append(Hop('send', b))
        hops[b].append(Hop('recv', a))
    if shuffled:
        for own in hops:
            random.shuffle(own)
    forward = programs([(Component('L', inner=tuple(own)),) for own in hops])
    backward = reversed_programs(forward)
    assert bool(stuck(forward)) == bool(stuck(backward))
    assert not (stuck(forward, buffered=True) and not stuck(forward))
    if not shuffled:
        assert stuck(forward) == []
        assert all(other is not None for other in partners(forward).values())
