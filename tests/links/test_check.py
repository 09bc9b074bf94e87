from __future__ import annotations

import pytest

from mnx.errors import MismatchError
from mnx.links.check import check
from mnx.links.routes import Component, Hop
from tests.links.test_routes import CHAIN, CROSSING, CYCLE, table


def complaint(*tables) -> str:
    with pytest.raises(MismatchError) as caught:
        check(list(tables))
    return str(caught.value)


def test_what_fits() -> None:
    check(CHAIN)
    check(CYCLE)
    check([table((None, (1, 0)), ((1, 0), None)), table((0, 0)), ()])


def test_a_wrong_rank_in() -> None:
    hint = 'Is the rank_in of rank 1 #0 meant to be 0?'
    assert complaint(CHAIN[0], table((2, 2)), CHAIN[2]).splitlines() == [
        'MultiNodeChainList: the routes do not fit together.',
        '> rank 0  #0 L  inputs     -> rank 1 ?',
        '> rank 1  #0 L  rank 2 ?   -> rank 2 #0',
        '  rank 2  #0 L  rank 1 #0  -> output',
        'rank 0 #0 sends to rank 1, which does not receive it. ' + hint,
        'rank 1 #0 waits for rank 2, which sends it nothing. Is its rank_in meant to be 0?',
    ]


def test_a_wrong_rank_out() -> None:
    said = complaint(table((None, 2)), CHAIN[1], CHAIN[2])
    assert (
        'rank 0 #0 sends to rank 2, which does not receive it. Is its rank_out meant to be 1?'
        in said
    )
    assert 'Is the rank_out of rank 0 #0 meant to be 1?' in said


def test_a_missing_partner() -> None:
    said = complaint(CHAIN[0], CHAIN[1], ())
    assert '> rank 1  #0 L  rank 0 #0  -> rank 2 ?' in said
    assert 'Add the component on the other side, or take this one away.' in said
    assert '> rank 0' not in said


def test_a_swapped_pair() -> None:
    """Rank 0 waits for what rank 1 makes of its own output."""
    said = complaint(table((1, None), (None, 1)), table((0, 0)))
    assert said.splitlines()[1:] == [
        '> rank 0  #0 L  rank 1 #0  -> output',
        '  rank 0  #1 L  inputs     -> rank 1 #0',
        '> rank 1  #0 L  rank 0 #1  -> rank 0 #0',
        'All wait for each other:',
        '  rank 0 #0 waits for rank 1',
        '  rank 1 #0 waits for rank 0',
        'Change the order of the components, or of the ranks in a list, on one of them.',
    ]


def test_a_crossing_of_sends() -> None:
    said = complaint(*CROSSING)
    assert 'rank 0 #0 sends to rank 1\n' in said
    assert 'Only short messages, which MPI buffers, would pass' in said


def test_only_those_in_the_circle_are_named() -> None:
    said = complaint(table((1, None)), table((2, (2, 0))), table((1, 1)))
    assert '> rank 0' not in said
    assert '  rank 1 #0 waits for rank 2\n  rank 2 #0 waits for rank 1\n' in said


def test_an_output_for_nobody() -> None:
    said = complaint(table((None, (0, 0)), (0, None)))
    assert '> rank 0  #0 L  inputs     -> own queue, own queue\n' in said
    assert 'keeps an output for its own rank, where nothing takes it' in said


def test_what_is_hidden_in_a_chain_is_not_missed() -> None:
    """Only that way is unknown: what else does not fit is found as ever."""
    wrapped = Component('Chain', hidden=(Hop('send', 1),))
    check([(wrapped,), table((0, None))])
    check([(wrapped,), table((0, None), (0, None))])
    check([(Component('List', nested=(wrapped,)),), table((0, None))])
    said = complaint((wrapped,), table((0, 0)))
    assert 'rank 1 #0 sends to rank 0, which does not receive it.' in said
    assert 'waits for' not in said
    said = complaint((wrapped,), table((2, None)), ())
    assert 'rank 1 #0 waits for rank 2, which sends it nothing.' in said


def test_many_ranks_are_not_all_drawn() -> None:
    """The odd ones are, and those beside them."""
    n = 1000
    ring = [table((None, 1), (n - 1, None)), *(table((r - 1, (r + 1) % n)) for r in range(1, n))]
    check(ring)
    said = complaint(*ring[:500], table((498, 501)), *ring[501:])
    lines = said.splitlines()
    assert len(lines) < 15
    assert '> rank 500  #0 L  rank 498 ?   -> rank 501 #0' in lines
    assert '> rank 499  #0 L  rank 498 #0  -> rank 500 ?' in lines
    assert '  ... of 1000 ranks' in lines
    said = complaint(*([table((None, None))] + [table((0, None))] * (n - 1)))
    assert len(said.splitlines()) < 80
    assert said.endswith('... and 989 more like these.')
