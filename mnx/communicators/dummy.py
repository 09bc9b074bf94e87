"""Packs and unpacks gradients, and sends nothing: to see what the packing costs."""

from __future__ import annotations

from mnx.communicators.base import Communicator
from mnx.transports.local import Done


class DummyCommunicator(Communicator):
    """As `flat`, without the sum: every rank gets its own gradients, divided by `size`.

    All else, such as `bcast_data`, is done as ever.
    """

    name = 'dummy'
    keeps_equal = False

    def sum_buffer(self, buffer: object) -> None:
        """Do nothing."""

    def start_sum(self, buffer: object) -> Done:
        """Do nothing."""
        return Done()
