from __future__ import annotations

from mnx.topology import Topology


def test_nodes_are_ordered_by_their_lowest_rank() -> None:
    topology = Topology.of_hosts(['b', 'a', 'b', 'c', 'a', 'b'])
    assert topology.nodes == ((0, 2, 5), (1, 4), (3,))
    assert topology.inter_size == 3
    assert [topology.inter_rank(r) for r in range(6)] == [0, 1, 0, 2, 1, 0]
    assert [topology.intra_rank(r) for r in range(6)] == [0, 0, 1, 0, 1, 2]
    assert [topology.intra_size(r) for r in range(6)] == [3, 2, 3, 1, 2, 3]
