"""What can this MPI do? Asked here, or, where MPI may not start, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from mnx.transports import mpi
from mnx.transports.gpu_aware import without_launcher

LIMIT_S = 60
_CHILD = """
import json
from mnx.transports import mpi_features
print(json.dumps(mpi_features.features()))
"""


def features() -> dict[str, Any]:
    """Return the library's name, standard, thread level and whether ranks can share memory.

    Starts MPI.
    """
    mpi.start()
    from mpi4py import MPI

    levels = {
        MPI.THREAD_SINGLE: 'single',
        MPI.THREAD_FUNNELED: 'funneled',
        MPI.THREAD_SERIALIZED: 'serialized',
        MPI.THREAD_MULTIPLE: 'multiple',
    }
    return {
        'library': ' '.join(mpi.library_name().split()),
        'standard': '.'.join(map(str, MPI.Get_version())),
        'threads': levels[MPI.Query_thread()],
        'shared_windows': _has_shared_windows(MPI),
    }


def _has_shared_windows(mpi4py: Any) -> bool:
    try:
        mpi4py.Win.Allocate_shared(8, 1, comm=mpi4py.COMM_SELF).Free()
    except (mpi4py.Exception, NotImplementedError):
        return False
    return True


def of_a_child() -> dict[str, Any]:
    """Return `features` of a process of its own, or ``{'problem': ...}``.

    Some libraries end a process that they cannot serve, for instance on a login node.
    """
    try:
        child = subprocess.run(
            [sys.executable, '-c', _CHILD],
            env=without_launcher(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {'problem': f'MPI did not start within {LIMIT_S} seconds'}
    try:
        return dict(json.loads(child.stdout))
    except ValueError:
        lines = child.stderr.strip().splitlines() or [f'exit status {child.returncode}']
        return {'problem': lines[-1]}
