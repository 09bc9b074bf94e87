"""Ranks are on one host if they share its memory, whatever the host calls itself."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from mnx.transports.hosts import shared_hosts

ranks = st.lists(st.tuples(st.sampled_from(['a', 'b']), st.integers(0, 2)), min_size=1, max_size=8)


@given(ranks)
def test_equal_names_mean_shared_memory(places: list[tuple[str, int]]) -> None:
    """A place is a host and a container on it; the leader is the first rank there."""
    names = [name for name, _ in places]
    leaders = [places.index(place) for place in places]
    hosts = shared_hosts(names, leaders)
    for i, host in enumerate(hosts):
        assert host.startswith(names[i])
        for j, other in enumerate(hosts):
            assert (host == other) == (places[i] == places[j])


def test_a_host_without_containers_keeps_its_name() -> None:
    assert shared_hosts(['a', 'b', 'a'], [0, 1, 0]) == ('a', 'b', 'a')
