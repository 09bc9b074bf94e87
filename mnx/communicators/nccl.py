"""One NCCL all-reduce for all gradients of a dtype; the one to choose where each rank has a GPU.

rank 0   a0 b0 c0 -> [ a0 b0 c0 ]         [ a b c ] -> a b c
rank 1   a1 b1 c1 -> [ a1 b1 c1 ]  ---->  [ a b c ] -> a b c
       1. pack, cast, scale       2. NCCL        3. divide, cast, unpack
"""

from __future__ import annotations

from mnx.arrays import Array
from mnx.communicators.two_dimensional import TwoDimensionalCommunicator


class NcclCommunicator(TwoDimensionalCommunicator):
    """Arrays on GPUs by NCCL; those on the host as `two_dimensional`."""

    name = 'nccl'
    needs_nccl = carries_by_nccl = True
    sums_half = True

    def sum_buffer(self, buffer: Array) -> None:
        """Replace a flat buffer by its sum over all ranks. Collective."""
        self._arrays.all_reduce(buffer)
