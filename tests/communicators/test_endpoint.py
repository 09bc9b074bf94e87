"""Who a rank is, and the checks of ranks, tags and items that all calls share."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mnx import testing
from mnx.communicators import Communicator
from mnx.communicators.endpoint import Config, Groups, Resources
from mnx.errors import ArgumentError, ClosedError
from tests.launching import alone


class Part:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def close(self) -> None:
        self.log.append(self.name)


@alone
def test_resources_are_freed_once_the_last_one_first() -> None:
    log: list[str] = []
    resources = Resources([Part(name, log) for name in 'abc'])
    assert not resources.closed
    resources.close()
    resources.close()
    assert resources.closed
    assert log == ['c', 'b', 'a']


@alone
def test_groups_close_both() -> None:
    log: list[str] = []
    Groups(Part('intra', log), Part('inter', log)).close()  # type: ignore[arg-type]
    assert sorted(log) == ['inter', 'intra']


@alone
def test_what_is_set_at_first() -> None:
    assert Config() == Config(allreduce_grad_dtype=None, batched_copy=True)


def test_places_on_nodes(comm: Communicator) -> None:
    """Two ranks on the first node, the others on the second."""
    with testing.create_on_nodes('naive', [2]) as made:
        node, place = divmod(comm.rank, 2) if comm.rank < 2 else (1, comm.rank - 2)
        on_first, on_second = min(comm.size, 2), max(comm.size - 2, 0)
        assert (made.rank, made.size) == (comm.rank, comm.size)
        assert (made.inter_rank, made.inter_size) == (node, 1 + (on_second > 0))
        assert (made.intra_rank, made.intra_size) == (place, (on_first, on_second)[node])


def test_groups_sum_over_a_node_and_across(comm: Communicator) -> None:
    with testing.create_on_nodes('naive', [2]) as made:
        groups = made.groups
        assert made.groups is groups  # made once: it is collective
        nodes = [r // 2 if r < 2 else 1 for r in range(comm.size)]
        places = [r if r < 2 else r - 2 for r in range(comm.size)]
        for transport, alike in ((groups.intra, nodes), (groups.inter, places)):
            x = np.array([10.0**comm.rank])
            transport.all_reduce(x, 'sum')
            mine = [r for r in range(comm.size) if alike[r] == alike[comm.rank]]
            assert x[0] == sum(10.0**r for r in mine)


class NotAnIndex:
    def __repr__(self) -> str:
        return 'my rank'


@pytest.mark.parametrize('kind', [int, np.int64, np.uint8, np.array])
def test_ranks_of_any_integer_type(comm: Communicator, kind: Any) -> None:
    for rank in range(comm.size):
        found = comm._rank('call', 'root', kind(rank))
        assert (type(found), found) == (int, rank)
        assert comm._route('call', 'dest', kind(rank), kind(3)) == (rank, 3)


@pytest.mark.parametrize('value', [-1, 'size', 1.0, '0', None, NotAnIndex()],
                         ids=['-1', 'size', '1.0', 'text', 'None', 'object'])  # fmt: skip
def test_what_is_no_rank(comm: Communicator, value: Any) -> None:
    value = comm.size if value == 'size' else value
    text = (
        f'call: root is not a rank, expected 0 to {comm.size - 1} but got {value!r} '
        f'(rank {comm.rank} of {comm.size}). Ranks count from 0'
    )
    with pytest.raises(ArgumentError, match=re.escape(text)):
        comm._rank('call', 'root', value)
    with pytest.raises(ArgumentError, match=re.escape(text)):
        comm._route('call', 'root', value, 0)


def test_tags(comm: Communicator) -> None:
    highest = comm._max_tag
    assert highest >= 32767  # which MPI guarantees, less what mnx takes for itself
    for tag in (0, np.int64(highest), highest):
        assert comm._tag('call', tag) == tag
    for tag in (-1, highest + 1):
        text = f'call: a tag is 0 to {highest}, but got {tag}.'
        with pytest.raises(ArgumentError, match=text):
            comm._tag('call', tag)
        with pytest.raises(ArgumentError, match=text):
            comm._route('call', 'dest', 0, tag)


def test_one_item_for_each_rank(comm: Communicator) -> None:
    comm._one_per_rank('call', comm.size)
    text = f'call: needs one item per rank, expected {comm.size} but got {comm.size + 1}'
    with pytest.raises(ArgumentError, match=text):
        comm._one_per_rank('call', comm.size + 1)


def test_an_error_inside_a_block_is_an_error_of_all(comm: Communicator) -> None:
    def block() -> None:
        with comm.together('load'):
            if comm.rank == comm.size - 1:
                raise ArgumentError('load: no such file here.')

    with pytest.raises(ArgumentError, match='no such file here'):
        block()


@pytest.mark.parametrize('call', ['together', '_meet', '_check_open', '_route'])
def test_nothing_begins_once_it_is_closed(comm: Communicator, call: str) -> None:
    made = comm.split(0, comm.rank)
    assert made is not None
    made.finalize()
    with pytest.raises(ClosedError, match='load: this communicator has been finalized'):
        getattr(made, call)('load', *(('dest', 0, 0) if call == '_route' else ()))
