"""Does this MPI read the memory of GPUs?

Asking the wrong one ends the process by a segmentation fault. So a child process asks: alone, by
sending to itself, and if it dies, the answer is no.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np

from mnx.errors import ArgumentError
from mnx.transports.base import Transport

VARIABLE = 'MNX_GPU_AWARE'
LIMIT_S = 60

_CHILD = """
import cupy
from mpi4py import MPI
for size in (100, 1 << 20):
    sent = cupy.arange(size, dtype='f4')
    received, total = cupy.zeros_like(sent), cupy.zeros_like(sent)
    cupy.cuda.get_current_stream().synchronize()
    MPI.COMM_SELF.Sendrecv(sent, 0, 0, received, 0, 0)
    MPI.COMM_SELF.Allreduce(sent, total)
    assert (received == sent).all() and (total == sent).all()
print('yes')
"""

# A child with a launcher's variables would take itself for a rank of the job.
_OF_LAUNCHERS = (
    *('PMI', 'PRTE', 'HYDI', 'HYDRA', 'MPI_LOCAL', 'MV2_COMM', 'SLURM', 'FLUX'),
    *('OMPI_COMM', 'OMPI_UNIVERSE', 'OMPI_MCA_orte', 'OMPI_MCA_ess'),
)


def asked_for(environ: Mapping[str, str]) -> bool | None:
    """Return what the user says by MNX_GPU_AWARE, or None.

    >>> asked_for({'MNX_GPU_AWARE': '1'}), asked_for({})
    (True, None)
    """
    value = environ.get(VARIABLE)
    if value is None:
        return None
    if value not in ('0', '1'):
        raise ArgumentError(f'{VARIABLE} is 0 or 1, but got {value!r}.')
    return value == '1'


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that no MPI launcher has started.

    >>> without_launcher({'PMI_RANK': '1', 'OMPI_MCA_pml': 'ucx', 'PATH': '/bin'})
    {'OMPI_MCA_pml': 'ucx', 'PATH': '/bin'}
    """
    return {k: v for k, v in environ.items() if not k.startswith(_OF_LAUNCHERS)}


def says_yes(program: str, limit_s: float = LIMIT_S) -> bool:
    """Run a Python program in a child process; return whether it ended well and printed 'yes'."""
    try:
        child = subprocess.run(
            [sys.executable, '-c', program],
            env=without_launcher(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limit_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return child.returncode == 0 and child.stdout.strip().endswith(b'yes')


@functools.cache
def _probed() -> bool:
    return says_yes(_CHILD)


def agreed(control: Transport, has_gpu: bool, may_probe: bool) -> bool:
    """Return whether arrays on GPUs may be given to MPI: if no rank objects. Collective.

    Parameters
    ----------
    control : Transport
        Carries the vote.
    has_gpu : bool
        Whether this rank has one; without, it objects.
    may_probe : bool
        Whether this rank tries it out; one on each host is enough.
    """
    said = asked_for(os.environ)
    vote = has_gpu and (said if said is not None else not may_probe or _probed())
    votes = np.array([vote], np.uint8)
    control.all_reduce(votes, 'min')
    return bool(votes[0])
