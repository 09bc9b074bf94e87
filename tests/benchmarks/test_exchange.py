import importlib.util

import pytest

from tests.benchmarks.running import BENCHMARKS, rows_of
from tests.launching import mpiexec


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    names = 'auto,flat,flat:float16,naive'
    options = ('--communicators', names, '--sets', 'mlp', '--peers', 'all')
    folder = tmp_path_factory.mktemp('exchange')
    found = rows_of(2, 'exchange', folder, *options, '--wire', 'lo')
    return {row['candidate']: row for row in found}


def test_every_candidate_has_a_row(rows):
    ours = ['raw Allreduce', 'copy', 'auto', 'flat', 'flat:float16', 'naive']
    assert list(rows)[: len(ours)] == ours
    theirs = set(rows) - set(ours)
    assert ('gloo' in theirs) == bool(importlib.util.find_spec('torch'))
    assert ('chainermn naive' in theirs) == bool(importlib.util.find_spec('chainermn'))
    assert rows['raw Allreduce']['ratio'] == 1
    assert {row['bytes'] for row in rows.values()} == {1_796_010 * 4}


def test_memory_is_what_the_algorithm_needs(rows):
    packed = 1_796_010 * 4
    assert rows['copy']['held'] is None
    if rows['flat']['held'] is None:
        pytest.skip('this system does not tell how much memory a process shares')
    assert rows['flat']['held'] == pytest.approx(packed, rel=0.1)
    assert abs(rows['naive']['held']) < packed / 10
    assert 1e6 < rows['auto']['held'] < packed


def test_bytes_are_counted(rows):
    assert all(row['wire'] >= 0 for row in rows.values())


def test_a_wrong_mean_ends_it(tmp_path):
    text = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = ['exchange.py', '--communicators', 'naive', '--sets', 'small', '--repeats', '1']
import exchange
import mnx
mnx.communicators.Communicator.multi_node_mean_grad = lambda *_: None
exchange.main()
"""
    job = mpiexec(2, text)
    assert job.returncode != 0
    assert 'naive gives a wrong mean' in job.stdout
