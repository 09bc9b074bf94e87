"""All ranks on one node: sums straight between processes, or through a window of shared memory.

See `straight_sums` and `node_window`.
"""

from __future__ import annotations

from mnx.communicators.endpoint import Config
from mnx.communicators.two_dimensional import TwoDimensionalCommunicator
from mnx.errors import ArgumentError
from mnx.transports.base import Channels


class SharedMemoryCommunicator(TwoDimensionalCommunicator):
    """As `two_dimensional`, for a single node."""

    name = 'shared_memory'

    def __init__(self, channels: Channels | None = None, config: Config | None = None) -> None:
        super().__init__(channels, config)
        if self.inter_size > 1:
            raise ArgumentError(
                f'shared_memory: needs all ranks on one node, but they are on {self.inter_size}. '
                "Use 'two_dimensional', or split by inter_rank first."
            )
