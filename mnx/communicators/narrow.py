"""Sixteen bits on the wire between nodes, 32 in every sum.

Three nodes; each one sums a third of the numbers::

    node 0   [a0 b0 c0] ─┐              ┌─ a0+a1+a2 ─┐              ┌─► [a b c]
    node 1   [a1 b1 c1] ─┼─ 1 all-to-all ─ b0+b1+b2 ─┼─ 3 allgather ┼─► [a b c]
    node 2   [a2 b2 c2] ─┘   16 bits    └─ c0+c1+c2 ─┘   16 bits    └─► [a b c]
                                         2 in float32

As many messages and half the bytes of an allreduce in float32. Every number is rounded twice, on
its way out and on its way back, however many nodes there are; MPI itself need not know the dtype.
Inside a node nothing is gained by 16 bits, so nothing is rounded there.

References: Mikami et al. 2018 (arXiv:1811.05233), section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mnx.arrays import Array, as_bytes
from mnx.communicators.chunks import share
from mnx.packing import concatenate
from mnx.transports.base import Transport


def all_reduce(
    transport: Transport,
    total: Array,
    wire: np.dtype[Any],
    finish: Callable[[Array], None],
) -> None:
    """Replace the flat float32 (or wider) `total` by its sum over the ranks, sent as `wire`.

    Collective. Complex numbers travel as two real ones. `finish` changes the sum in place before
    it is rounded, so that a mean of large numbers does not overflow.
    """
    if total.dtype.kind == 'c':
        total = total.view(total.real.dtype)
    rank, size = transport.rank, transport.size
    shares = [share(total.size, r, size) for r in range(size)]
    sent = converted(total, wire)
    parts = list(np.empty((size, shares[rank].stop - shares[rank].start), wire))
    transport.all_to_all([as_bytes(sent[s]) for s in shares], list(map(as_bytes, parts)))
    own = converted(parts[0], total.dtype)
    for part in parts[1:]:
        own += converted(part, total.dtype)
    finish(own)
    counts = [(s.stop - s.start) * wire.itemsize for s in shares]
    transport.all_gather(as_bytes(converted(own, wire)), as_bytes(sent), counts)
    concatenate([sent], total)


def converted(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return a copy of the flat array in another dtype."""
    return concatenate([x], np.empty(x.size, dtype))
