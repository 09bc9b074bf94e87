import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.benchmarks.running import BENCHMARKS
from tests.launching import clean_environment


def missing():
    """Return why there can be no emulated cluster here, or nothing."""
    if not sys.platform.startswith('linux') or os.geteuid() != 0:
        return 'an emulated cluster needs root on Linux'
    path = os.pathsep.join([os.environ['PATH'], '/usr/sbin', '/sbin'])
    for tool in ('ip', 'tc', 'unshare', 'nsenter'):
        if shutil.which(tool, path=path) is None:
            return f'an emulated cluster needs {tool}'
    probe = ['unshare', '--net', '--uts', '--ipc', '--mount', 'ip', 'link', 'add', 'type', 'veth']
    try:
        done = subprocess.run(
            probe, env={'PATH': path}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f'no emulated cluster here: {error}'
    return done.stderr


def run(script, *options, **environment):
    return subprocess.run(
        [*script, *map(str, options)],
        env={**clean_environment(), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def exchange(*options):
    return run([sys.executable, BENCHMARKS / 'cluster_exchange.py'], *options)


@pytest.fixture
def needs_cluster():
    reason = missing()
    if reason:
        pytest.skip(reason)


def left_over():
    return run(['ip', 'netns', 'list']).stdout


@pytest.mark.slow
@pytest.mark.limit(400)
def test_two_nodes_and_what_they_send(needs_cluster, tmp_path):
    before, file = left_over(), tmp_path / 'rows.json'
    options = ('--shapes', '2x2', '--links', '1gbit', '--communicators', 'two_dimensional,naive')
    job = exchange(*options, '--sets', 'small', '--repeats', 2, '--json', file)
    assert job.returncode == 0, job.stdout + job.stderr
    rows = {row['candidate']: row for row in json.loads(file.read_text())['rows']}
    assert list(rows) == ['raw Allreduce', 'two_dimensional', 'naive']
    assert {(row['shape'], row['link'], row['ranks']) for row in rows.values()} == {
        ('2x2', '1gbit', 4)
    }
    assert all(row['us_of_least'] > 1 for row in rows.values())
    # every byte crosses once; what is above are headers and the ranks' comparing of calls
    assert 1 < rows['two_dimensional']['wire_of_least'] < 1.2
    assert left_over() == before


@pytest.mark.slow
@pytest.mark.limit(400)
def test_a_failure_takes_the_cluster_down(needs_cluster):
    before = left_over()
    job = exchange('--shapes', '2x1', '--links', '1gbit', '--communicators', 'no_such')
    assert job.returncode != 0
    assert 'Unrecognized communicator: "no_such"' in job.stdout + job.stderr
    assert left_over() == before


def test_without_root_it_says_so():
    nobody = {'user': 65534} if hasattr(os, 'geteuid') and os.geteuid() == 0 else {}
    job = subprocess.run(
        ['bash', '-s', 'up', '2'],
        input=(BENCHMARKS / 'cluster.sh').read_text(),
        cwd='/',
        capture_output=True,
        text=True,
        check=False,
        **nobody,
    )
    assert job.returncode == 1
    assert 'needs root, to make network namespaces' in job.stderr
