"""The default: large arrays where they stand, in pieces that stay in cache; small ones packed."""

from __future__ import annotations

from mnx.communicators.base import Communicator


class AutoCommunicator(Communicator):
    """Packs arrays below 256 KiB; sums in pieces of 1 MiB.

    Both were measured with ``benchmarks/exchange.py``: a piece that is still in cache is scaled
    and summed faster than a long buffer, and packing small arrays saves their latencies.
    """

    name = 'auto'
    pack_below = 256 * 1024
    piece_bytes = 1024 * 1024
