"""The specification of all communicators: one all-reduce per array, where it stands.

rank 0   [ a0 ] [ b0 ]          [ a0+a1 ] [ b0+b1 ]
rank 1   [ a1 ] [ b1 ]   ---->  [ a0+a1 ] [ b0+b1 ]
"""

from __future__ import annotations

from mnx.communicators.base import Communicator


class NaiveCommunicator(Communicator):
    """One all-reduce per gradient."""

    name = 'naive'
    pack_below = 0
