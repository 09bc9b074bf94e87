"""NCCL in the node, and MPI through host memory among the nodes' first ranks.

            node 0                      node 1
    rank 0 ◄─1─ rank 1          rank 2 ◄─1─ rank 3      NCCL reduces in the node
       └────────────2 allreduce───┘                     the first ranks, through their host memory
    rank 0 ─3─► rank 1          rank 2 ─3─► rank 3      NCCL broadcasts in the node

For a network that NCCL cannot use and an MPI that cannot read GPUs: one copy of the gradients
leaves each node.
"""

from __future__ import annotations

import functools

from mnx.arrays import Array
from mnx.communicators.base import Communicator
from mnx.transports.nccl import NcclTransport


class NonCudaAwareCommunicator(Communicator):
    """Sums in the node, among the nodes, and hands the result out in the node."""

    name = 'non_cuda_aware'
    needs_nccl = True

    @functools.cached_property
    def _node(self) -> NcclTransport:
        return self._own(NcclTransport(self.groups.intra))

    def sum_buffer(self, buffer: Array) -> None:
        """Replace a flat buffer by its sum over all ranks. Collective."""
        self._node.reduce(buffer, 0)
        if self.intra_rank == 0:
            self.groups.inter.all_reduce(buffer)
        self._node.broadcast(buffer, 0)
