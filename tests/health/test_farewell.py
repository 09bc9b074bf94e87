"""A rank that ends too early ends the others' wait; one that ends in time disturbs nobody."""

from __future__ import annotations

import os

import pytest

from mnx.transports.launch import detect
from tests.launching import mpiexec

_suite = detect(os.environ)

pytestmark = pytest.mark.skipif(
    _suite is not None and _suite.size > 1,
    reason='starts jobs of its own: the suite on 1 rank does',
)

START = """
import os, sys
import numpy as np
import mnx
comm = mnx.create_communicator('naive')
"""


@pytest.mark.parametrize('leave', ['sys.exit(0)', 'pass'])
def test_a_rank_that_ends_while_the_others_wait(leave: str) -> None:
    program = f"""
if comm.rank == 1:
    {leave}
else:
    comm.allreduce(np.ones(3, 'f4'))
    print('went on')
"""
    job = mpiexec(3, START + program, timeout=30)
    assert job.returncode != 0
    assert 'went on' not in job.stdout
    assert '> rank 1  #1  finalize' in job.stdout
    assert 'the end of its program' in job.stdout
    assert 'rank 0  #1  allreduce sum float32 (3,)  at ' in job.stdout
    assert 'script.py:10' in job.stdout


@pytest.mark.parametrize(
    'program',
    [
        'comm.barrier()',
        'comm.finalize()',
        'if comm.rank: comm.finalize()',
        'for kind in ("flat", "shared_memory"): mnx.create_communicator(kind)',
        'other = mnx.create_communicator(); del other; comm.split(comm.rank % 2, 0)',
        'if comm.rank: import time; time.sleep(1)',
        'comm.mpi_comm.Barrier(); from mpi4py import MPI; MPI.Finalize()',
    ],
)
@pytest.mark.parametrize('check', ['0', '1'])
def test_an_end_that_is_no_error(program: str, check: str) -> None:
    job = mpiexec(2, START + program, timeout=30, env={'MNX_CHECK': check})
    assert (job.returncode, job.stdout) == (0, '')


def test_ranks_that_have_ended_may_wait_long_for_the_last() -> None:
    """What one rank does at the end, such as plots, is no reason to end the job."""
    program = 'import time; time.sleep(4 * (comm.rank == 0))'
    job = mpiexec(2, START + program, timeout=30, env={'MNX_TIMEOUT': '1'})
    assert (job.returncode, job.stdout) == (0, '')


def test_an_exit_status_stays() -> None:
    assert mpiexec(2, START + 'sys.exit(7)', timeout=30).returncode == 7
