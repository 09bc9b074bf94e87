"""Loops in C over many small arrays, where they were built; without them NumPy does the same.

An exchange of 400 gradients of 1 KiB takes half the time with them: what Python spends on an array
is several times what copying 1 KiB takes. Each of them answers False if it has not done its work,
as those here always do, which stand for them where there was no compiler; ``mnx.packing`` then goes
another way, to the same bits. ``MNX_KERNELS=0`` leaves them out.
"""

from __future__ import annotations

import os

__all__ = ['add', 'alike', 'built', 'gather', 'scatter']


def _not_done(*_: object) -> bool:
    return False


alike = gather = scatter = add = _not_done
built = False

if os.environ.get('MNX_KERNELS', '1') != '0':
    try:
        from mnx._kernels import add, alike, gather, scatter  # type: ignore[assignment]

        built = True
    except ImportError:  # no compiler, no headers of Python, or another Python
        pass
