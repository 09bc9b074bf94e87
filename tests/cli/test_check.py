"""`mnx check` as a user starts it, in a sound installation and by a launcher of another MPI."""

from __future__ import annotations

import json
import re

import pytest

from mnx.cli import self_test
from tests.cli.commands import alone, document_in, mnx, needs_extra, on_terminal
from tests.launching import mpiexec, starts_jobs

pytestmark = [starts_jobs, needs_extra]


@pytest.mark.parametrize('n', [2, 4])
def test_a_sound_installation(n: int):
    job = mnx(n, 'check', '--json')
    assert job.returncode == 0, job.stdout
    found = {finding['subject']: finding for finding in document_in(job.stdout)}
    assert str(n) in found['launcher']['text']
    for name in self_test.names(with_nccl=False):
        assert found[name]['verdict'] == 'ok', found[name]


def test_too_many_threads_are_noted():
    unlimited = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '64')
    job = mnx(2, 'check', env=unlimited)
    assert job.returncode == 0, job.stdout
    assert '128 threads of 2 ranks' in job.stdout
    assert 'BLAS threads: OMP_NUM_THREADS=' in job.stdout


def test_a_launcher_of_another_mpi():
    """Two processes, each with an environment of Open MPI's or Hydra's, but no MPI to join them."""
    library = json.loads(alone('info', '--json').stdout)['mpi']['library']
    size, rank = (
        ('PMI_SIZE', 'PMI_RANK')
        if 'Open MPI' in library
        else ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK')
    )
    first = alone('check', env={size: '2', rank: '0'})
    assert first.returncode == 3, first.stdout
    assert 'wrong: launcher' in first.stdout
    assert "that library's own mpiexec" in ' '.join(first.stdout.split())
    second = alone('check', env={size: '2', rank: '1'})
    assert (second.returncode, second.stdout) == (3, '')


PLANTED = """
from mnx.cli import main, self_test
self_test.problems = lambda comm: ['rank 1: planted'] if comm.name == 'flat' else []
main(['check'])
"""


def test_a_fault_is_status_1_on_all_ranks_and_told_once():
    job = mpiexec(2, PLANTED)
    assert job.returncode == 1, job.stdout
    assert len(re.findall('wrong +rank 1: planted', job.stdout)) == 1
    assert 'wrong: flat (' in job.stdout
    assert 'Traceback' not in job.stdout
    assert '[mnx]' not in job.stdout


def test_alone_on_a_terminal():
    status, seen = on_terminal(1, 'check')
    assert status == 0, seen
    assert 'For more: mpiexec -n 4 mnx check' in seen
    assert 'all works' in seen
