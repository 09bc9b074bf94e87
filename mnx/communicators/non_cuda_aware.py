"""NCCL in the node, and MPI through host memory among the nodes' first ranks.

            node 0                      node 1
    rank 0 ◄─1─ rank 1          rank 2 ◄─1─ rank 3      NCCL reduces in the node
       └────────────2 allreduce───┘                     the first ranks, through their host memory
    rank 0 ─3─► rank 1          rank 2 ─3─► rank 3      NCCL broadcasts in the node

For a network that NCCL cannot use and an MPI that cannot read GPUs: one copy of the gradients
leaves each node.
"""

from __future__ import annotations

from mnx.communicators.hierarchical import HierarchicalCommunicator


class NonCudaAwareCommunicator(HierarchicalCommunicator):
    """As `hierarchical`, with NCCL in the node, and everything else through host memory."""

    name = 'non_cuda_aware'
    needs_nccl = True
