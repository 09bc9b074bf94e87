"""What 'auto' stands for: a pure function of where the ranks are."""

from __future__ import annotations

from dataclasses import dataclass

from mnx.topology import Topology


@dataclass(frozen=True)
class Choice:
    """The name of a communicator, and why it was chosen."""

    name: str
    reason: str


def choose(topology: Topology) -> Choice:
    """Return the fastest communicator for ranks on these nodes.

    >>> choose(Topology.of_hosts(['a', 'a', 'b', 'b'])).name
    'two_dimensional'
    """
    size = sum(len(ranks) for ranks in topology.nodes)
    if size == 1:
        return Choice('naive', 'there is one rank')
    if topology.inter_size == 1:
        return Choice('shared_memory', f'all {size} ranks are on one node')
    if all(len(ranks) == 1 for ranks in topology.nodes):
        return Choice('flat', f'the {size} ranks are on as many nodes')
    return Choice('two_dimensional', f'{size} ranks are on {topology.inter_size} nodes')
