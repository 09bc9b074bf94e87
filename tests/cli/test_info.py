"""`mnx info` as a user starts it, on one and several ranks, to a pipe and to a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from mnx.cli import info
from tests.cli.commands import alone, document_in, mnx, needs_extra, on_terminal
from tests.launching import starts_jobs
from tests.peers import may_reach_others

FACTS: dict[str, Any] = {
    'versions': {'python': '3.12.1', 'cupy': None},
    'mpi': {'library': 'MPICH', 'standard': '4.1', 'threads': 'multiple', 'shared_windows': False},
    'launcher': 'srun',
    'ranks': [
        {
            'rank': 0,
            'host': 'a',
            'node': 0,
            'cores': 8,
            'kernels': True,
            'gpus': ['a 00:1'],
            'nccl': '2.32',
            'problem_of_nccl': '',
        }
    ],
    'nodes': 1,
    'peer_memory': True,
    'auto': {'communicator': 'nccl', 'reason': 'because'},
}


def test_rows_tell_every_fact():
    rows = dict(info.rows(FACTS))
    assert rows['cupy'] == 'not installed'
    assert (rows['MPI'], rows['MPI shared windows']) == ('MPICH', 'no')
    assert rows['rank 0'] == 'a, 8 cores, a 00:1, NCCL 2.32'
    assert rows['auto'] == 'nccl (because)'
    assert rows['loops in C'] == 'yes'


def test_rows_tell_who_has_no_loops_in_c():
    [rank] = FACTS['ranks']
    other = {**rank, 'rank': 1, 'kernels': False}
    for ranks, expected in [([rank, other], 'not on ranks 1: there'), ([other], 'no: NumPy')]:
        assert dict(info.rows({**FACTS, 'ranks': ranks}))['loops in C'].startswith(expected)


def test_rows_tell_whether_ranks_reach_each_other():
    for reached, expected in ((True, 'reached'), (False, 'not reached: '), (None, '')):
        rows = dict(info.rows({**FACTS, 'peer_memory': reached}))
        assert rows.get('memory of others', '')[: len(expected)] == expected
        assert ('memory of others' in rows) == bool(expected)


def test_rows_tell_why_mpi_cannot_be_used():
    rows = dict(info.rows({**FACTS, 'mpi': {'problem': 'no libmpi'}}))
    assert rows['MPI'] == 'cannot be used: no libmpi'
    assert 'MPI threads' not in rows


@starts_jobs
@needs_extra
def test_json_of_two_ranks():
    job = mnx(2, 'info', '--json')
    assert job.returncode == 0, job.stdout
    facts = document_in(job.stdout)  # one document: rank 0 alone speaks
    assert facts['versions']['numpy'] == np.__version__
    assert facts['versions']['python'] == sys.version.split()[0]
    assert [rank['rank'] for rank in facts['ranks']] == [0, 1]
    assert facts['auto']['communicator'] == 'shared_memory'
    assert facts['mpi']['threads'] == 'multiple'
    assert facts['peer_memory'] is may_reach_others()


@starts_jobs
@needs_extra
def test_json_alone_asks_mpi_in_another_process():
    process = alone('info', '--json')
    facts = json.loads(process.stdout)
    assert facts['launcher'] is facts['peer_memory'] is None
    assert facts['auto']['communicator'] == 'local'
    assert facts['mpi']['shared_windows'] is True


@starts_jobs
@needs_extra
def test_table_on_a_terminal():
    status, seen = on_terminal(1, 'info')
    assert status == 0, seen
    assert '───' in seen
    assert 'local (there is one process)' in seen
