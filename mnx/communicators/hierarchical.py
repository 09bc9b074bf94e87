"""Sum in the node, among the nodes' first ranks, and hand the result out in the node.

            node 0                      node 1
    rank 0 ◄─1─ rank 1          rank 2 ◄─1─ rank 3      one rank of each node sums its node's
       └────────────2 allreduce───┘                     the first ranks
    rank 0 ─3─► rank 1          rank 2 ─3─► rank 3      the others copy

For one network card in each node and many ranks: only one of them talks to the network.

References: Akiba, Fukuda, Suzuki 2017 (arXiv:1710.11351).
"""

from __future__ import annotations

from mnx.communicators.two_dimensional import TwoDimensionalCommunicator


class HierarchicalCommunicator(TwoDimensionalCommunicator):
    """As `two_dimensional`, with a single share for each chunk."""

    name = 'hierarchical'

    def owners(self) -> int:
        """Return 1: the first rank of the node sums all."""
        return 1
