"""Which ranks share a node: a pure function of the hosts' names.

Eight ranks on two nodes (host names a, b)::

    host         a a a a b b b b
    rank         0 1 2 3 4 5 6 7
    inter_rank   0 0 0 0 1 1 1 1      the node
    intra_rank   0 1 2 3 0 1 2 3      the place within the node
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """The nodes of a group, as lists of ranks; nodes are ordered by their lowest rank."""

    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def of_hosts(cls, hosts: Sequence[str]) -> Topology:
        """Return the topology in which ranks with equal host names share a node.

        >>> Topology.of_hosts(['b', 'a', 'b']).nodes
        ((0, 2), (1,))
        """
        members: dict[str, list[int]] = {}
        for rank, host in enumerate(hosts):
            members.setdefault(host, []).append(rank)
        return cls(tuple(tuple(ranks) for ranks in members.values()))

    @property
    def inter_size(self) -> int:
        """The number of nodes."""
        return len(self.nodes)

    def inter_rank(self, rank: int) -> int:
        """Return the number of the node that holds `rank`."""
        return next(i for i, ranks in enumerate(self.nodes) if rank in ranks)

    def intra_rank(self, rank: int) -> int:
        """Return the place of `rank` within its node."""
        return self.nodes[self.inter_rank(rank)].index(rank)

    def intra_size(self, rank: int) -> int:
        """Return the number of ranks on the node that holds `rank`."""
        return len(self.nodes[self.inter_rank(rank)])
