"""Some jobs of the table of faults; `make faults` runs them all."""

import importlib
import json
import subprocess
import sys

import pytest

from tests.benchmarks.running import BENCHMARKS
from tests.launching import clean_environment

CASES = [
    ('forward', 'exception', 'rank'),
    ('collective', 'SIGKILL', None),
    ('checkpoint', 'SystemExit', 'rank'),
    ('checkpoint', 'SIGKILL', None),
    ('start', 'SIGKILL under mnx run', 'rank'),
    ('backward', 'SIGKILL under mnx run', 'rank'),
    ('start', 'SIGSTOP', 'who wait'),
]


@pytest.mark.parametrize(('place', 'way', 'tells'), CASES)
def test_the_job_ends_as_it_should(place, way, tells):
    options = ['--ranks', '2', '--places', place, '--ways', way, '--no-page']
    result = subprocess.run(
        [sys.executable, BENCHMARKS / 'faults.py', *options],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ranks, *case, seconds, status, told = result.stdout.strip().split('  ')
    assert (ranks, *case) == ('2', place, way)
    assert float(seconds) >= 0
    assert int(status) != 0
    assert told in ({tells} if tells else {'rank', 'signal'})  # Open MPI's launcher knows it


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module('faults')


def test_the_page_is_made_of_the_results(faults):
    results = [json.loads(file.read_text()) for file in sorted(faults.RESULTS.glob('*.json'))]
    assert len(results) == 2
    assert faults.page(results) == faults.PAGE.read_text()


def test_a_hang_and_a_damaged_checkpoint_are_told(faults, tmp_path):
    (tmp_path / 'failed').write_text('1.0')
    (tmp_path / 'checkpoint').write_bytes(b'half of it')
    case = faults.Case(4, 'forward', 'SIGKILL')
    hang, damage = faults.problems_of(case, None, tmp_path)
    assert hang == f'it did not end in {faults.HANGS} s'
    assert damage.startswith('the last checkpoint cannot be read')
    outcome = faults.Outcome(4, 'forward', 'SIGKILL', 60.0, None, 'nothing', [hang])
    machine = {'MPI': 'an MPI', 'Python': '3', 'cores': '2', 'load': '0'}
    page = faults.page([{'machine': machine, 'rows': [vars(outcome)]}])
    assert f'- forward, SIGKILL, n = 4: {hang}' in page
    assert '| in the forward pass | SIGKILL | 60.00 | none | nothing |' in page


def test_what_the_output_tells(faults):
    case = faults.Case(4, 'forward', 'SIGKILL')
    assert case.failing_rank == 3
    assert faults.told('[mnx] rank 3 of 4 on node1 failed', case) == 'rank'
    assert faults.told('[mnx] rank 0 of 4 on node1 failed', case) == 'nothing'
    assert faults.told('Process name: [prterun-node1-33@1,3]', case) == 'rank'
    assert faults.told('Process name: [prterun-node1-33@1,2]', case) == 'nothing'
    assert faults.told('EXIT STRING: Killed (signal 9)', case) == 'signal'
    waits = 'rank {} of 4 on node1, which waits for all\n'
    assert faults.told(''.join(map(waits.format, (0, 2, 1))), case) == 'who wait'
    assert faults.told(''.join(map(waits.format, (0, 1, 0))), case) == 'nothing'
