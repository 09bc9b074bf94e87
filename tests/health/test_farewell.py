"""A rank that ends too early ends the others' wait; one that ends in time disturbs nobody."""

from __future__ import annotations

import pytest

from tests.launching import START_AT_ANY_TIME, mpiexec, starts_jobs

pytestmark = starts_jobs

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
    job = mpiexec(3, START + program)
    assert job.returncode != 0
    assert 'went on' not in job.stdout
    assert '> rank 1  #1  finalize' in job.stdout
    assert 'the end of its program' in job.stdout
    assert 'rank 0  #1  allreduce sum float32 (3,)  at ' in job.stdout
    assert 'script.py:10' in job.stdout


WAITING_IN = {
    'split': 'part = comm.split(0, -comm.rank)',
    'group': 'part = comm.group([2, 1])',
    'split_of_a_split': 'part = comm.split(0, comm.rank).split(0, comm.rank)',
    'second': 'part = mnx.create_communicator("naive")',
    'first': 'part, other = comm, mnx.create_communicator("naive").split(0, comm.rank)',
}


@pytest.mark.parametrize('make', WAITING_IN.values(), ids=WAITING_IN)
def test_where_the_others_wait(make: str) -> None:
    """It has many communicators, and comes to the one that matters."""
    program = f"""
spare = [comm.split(comm.rank % 2, 0) for _ in range(3)]
{make}
kept = comm.split(0, 0)
if comm.rank != 1 and part is not None:
    part.allreduce(np.ones(3))
"""
    job = mpiexec(3, START + program)
    assert job.returncode != 0
    assert 'the end of its program' in job.stdout
    assert 'allreduce sum float64 (3,)  at ' in job.stdout
    assert 'no progress' not in job.stdout


def test_who_catches_the_error_may_wait_again() -> None:
    """In the same communicator and in another; at last all end well."""
    program = """
one, two = comm.split(0, comm.rank), comm.split(0, comm.rank)
caught = 0
if comm.rank != 1:
    for part in (two, one, two, comm):
        try:
            part.barrier()
        except mnx.errors.MismatchError as error:
            caught += 'the end of its program' in str(error)
    print('caught', caught)
"""
    job = mpiexec(3, START + program)
    assert job.stdout.split('\n')[:2] == ['caught 4'] * 2, job.stdout
    assert job.returncode == 0


@pytest.mark.parametrize(
    'program',
    [
        'parts = [comm.split(comm.rank % 2, 0), comm.group([1, 0])]',
        'part = comm.split(0, 0); comm.finalize()',
        'part = comm.split(0, 0)\nif comm.rank: comm.finalize()',
        'part = comm.split(0, 0)\nif comm.rank: part.finalize()',
        'part = comm.split(0, 0)\nif comm.rank: del part',
        'part = comm.split(0, 0)\nif comm.rank == 0: part.finalize(); comm.finalize()',
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
    job = mpiexec(2, START + program, env={'MNX_CHECK': check})
    assert (job.returncode, job.stdout) == (0, '')


def test_ranks_that_have_ended_may_wait_long_for_the_last() -> None:
    """What one rank does at the end, such as plots, is no reason to end the job."""
    program = 'import time; time.sleep(4 * (comm.rank == 0))'
    job = mpiexec(2, START_AT_ANY_TIME + START + program, env={'MNX_TIMEOUT': '1'})
    assert (job.returncode, job.stdout) == (0, '')


def test_an_exit_status_stays() -> None:
    assert mpiexec(2, START + 'sys.exit(7)').returncode == 7
