"""One all-reduce for all arrays of a dtype.

rank 0   a0 b0 c0 -> [ a0 b0 c0 ]         [ a b c ] -> a b c
rank 1   a1 b1 c1 -> [ a1 b1 c1 ]  ---->  [ a b c ] -> a b c
           1. pack            2. sum            3. unpack
"""

from __future__ import annotations

from mnx.communicators.base import Communicator


class FlatCommunicator(Communicator):
    """One all-reduce of the packed gradients."""

    name = 'flat'
    pack_below = float('inf')
