"""What Python makes long, in C where that was built; without it NumPy does the same.

An exchange of 400 gradients of 1 KiB takes half the time with it: what Python spends on an array
is several times what copying 1 KiB takes. A look at one array takes one call instead of eight. And
ranks of a node meet in memory that they share, which takes instructions that NumPy has not.

Each function answers False if it has not done its work, as those here always do, which stand for
them where there was no compiler; their callers then go another way, to the same bits.
``MNX_KERNELS=0`` leaves them out.
"""

from __future__ import annotations

import os

__all__ = [
    'ROOM',
    'ROW',
    'add',
    'addresses',
    'alike',
    'as_bytes',
    'built',
    'gather',
    'kind',
    'largest',
    'on_unused',
    'reach',
    'scatter',
    'sum_in_window',
    'sum_share',
]


def _not_done(*_: object) -> bool:
    return False


addresses = alike = gather = scatter = add = kind = as_bytes = on_unused = _not_done
largest = reach = sum_share = sum_in_window = _not_done
built = False
ROOM = ROW = 0  # words of `largest`: that a rank can bring, and of its row

if os.environ.get('MNX_KERNELS', '1') != '0':
    try:
        from mnx._kernels import (  # type: ignore[assignment]
            ROOM,
            ROW,
            add,
            addresses,
            alike,
            as_bytes,
            gather,
            kind,
            largest,
            on_unused,
            reach,
            scatter,
            sum_in_window,
            sum_share,
        )

        built = True
    except ImportError:  # no compiler, no headers of Python, or another Python
        pass
