"""`mnx run` runs a script as Python would, and ends the job when one rank fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.commands import alone, mnx, needs_extra, on_terminal
from tests.launching import clean_environment, starts_jobs

pytestmark = [starts_jobs, needs_extra]

SHOWS = """
import __main__, json, sys, beside
assert __main__.__dict__ is globals()
VARYING = ('__annotations__', '__cached__')  # not in all versions of Python
print(json.dumps([sys.argv, sys.path[0], __name__, __file__, __doc__, beside.value,
                  sorted(n for n in globals() if n.startswith('__') and n not in VARYING)]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'beside.py').write_text('value = 42\n')
    (tmp_path / 'shows.py').write_text(f'"""It has a text."""\n{SHOWS}')
    return tmp_path


def test_a_script_sees_what_python_gives_it(folder: Path):
    words = [str(folder / 'shows.py'), '-b', '8', '--help', '--as-chainermn']
    plain = subprocess.run(
        [sys.executable, *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    ours = alone('run', *words)
    assert ours.returncode == 0, ours.stderr
    expected, found = json.loads(plain.stdout), json.loads(ours.stdout)
    assert found == expected


def test_what_runs_at_the_end_still_sees_the_script(folder: Path):
    (folder / 'last.py').write_text(
        'import atexit, sys\n'
        'value = 3\n'
        'atexit.register(lambda: print(value, sys.modules["__main__"].value))\n'
    )
    assert alone('run', folder / 'last.py').stdout == '3 3\n'


def test_children_of_multiprocessing_find_the_script(folder: Path):
    (folder / 'pool.py').write_text(
        'import multiprocessing\n'
        'def square(x): return x * x\n'
        'if __name__ == "__main__":\n'
        '    with multiprocessing.get_context("spawn").Pool(1) as pool:\n'
        '        print(pool.map(square, [3]))\n'
    )
    process = alone('run', folder / 'pool.py')
    assert process.stdout == '[9]\n', process.stderr


FAILING = """
import mnx
comm = mnx.create_communicator()
if comm.rank == comm.size - 1:
    {failure}
comm.barrier()
"""


def test_an_error_of_one_rank_ends_the_job_without_frames_of_mnx(tmp_path: Path):
    (tmp_path / 'fails.py').write_text(FAILING.format(failure='raise ValueError("planted")'))
    job = mnx(2, 'run', tmp_path / 'fails.py')
    assert job.returncode != 0
    assert 'rank 1 of 2' in job.stdout
    assert job.stdout.count('ValueError: planted') == 1
    assert 'in execute' not in job.stdout
    assert 'runpy' not in job.stdout


def test_the_status_of_sys_exit_is_kept(tmp_path: Path):
    (tmp_path / 'fails.py').write_text('import sys\nsys.exit(7)\n')
    assert alone('run', tmp_path / 'fails.py').returncode == 7


def test_the_status_of_one_rank_ends_the_job(tmp_path: Path):
    (tmp_path / 'fails.py').write_text(FAILING.format(failure='raise SystemExit(7)'))
    job = mnx(2, 'run', tmp_path / 'fails.py')
    assert job.returncode == 7 or sys.version_info < (3, 12), job.stdout


def test_a_missing_script_is_told_once_with_status_2(tmp_path: Path):
    job = mnx(2, 'run', tmp_path / 'nothing.py')
    assert (job.returncode, job.stdout.count('the script is missing')) == (2, 1), job.stdout


def test_a_script_on_a_terminal(tmp_path: Path):
    (tmp_path / 'tty.py').write_text('import sys\nprint("a terminal:", sys.stdout.isatty())\n')
    assert on_terminal(1, 'run', tmp_path / 'tty.py') == (0, 'a terminal: True\r\n')


ENDED = """
import os, signal, sys, mnx
comm = mnx.create_communicator()
if comm.rank == 1:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
comm.barrier()
"""

linux = pytest.mark.skipif(sys.platform != 'linux', reason='ranks are watched on Linux only')


@linux
@pytest.mark.parametrize('name', ['SIGKILL', 'SIGBUS'])
def test_a_rank_that_a_signal_ends_is_named(tmp_path: Path, name: str):
    (tmp_path / 'ended.py').write_text(ENDED)
    job = mnx(3, 'run', tmp_path / 'ended.py', name)
    assert job.returncode != 0
    assert job.stdout.count(f'was ended by {name}') == 1
    assert 'mnx: rank 1 of 3 (process ' in job.stdout


ASKED = """
import os, signal, sys, threading
heard = threading.Event()
signal.signal(getattr(signal, sys.argv[1]), lambda *_: heard.set())
assert 'MNX_WATCHED_BY' not in os.environ
os.kill(os.getppid(), getattr(signal, sys.argv[1]))
print('heard' if heard.wait(60) else 'not heard')
sys.exit(5)
"""


@linux
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGUSR1'])
def test_signals_of_the_launcher_reach_the_rank(tmp_path: Path, name: str):
    (tmp_path / 'asked.py').write_text(ASKED)
    job = mnx(1, 'run', tmp_path / 'asked.py', name)
    assert 'heard' in job.stdout.splitlines()
    assert 'was ended' not in job.stdout
    assert job.returncode == 5


@linux
def test_no_rank_outlives_the_process_that_the_launcher_knows(tmp_path: Path):
    (tmp_path / 'orphan.py').write_text(
        'import os, pathlib, signal, sys, time\n'
        'pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n'
        'os.kill(os.getppid(), signal.SIGKILL)\n'
        'time.sleep(1000)\n'
    )
    job = mnx(1, 'run', tmp_path / 'orphan.py', tmp_path / 'pid')
    assert job.returncode != 0
    place, end = Path('/proc', (tmp_path / 'pid').read_text()), time.monotonic() + 60
    while place.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not place.exists()  # its own sleep is longer


def test_without_a_launcher_nobody_watches(tmp_path: Path):
    (tmp_path / 'parent.py').write_text('import os\nprint(os.getppid())\n')
    assert alone('run', tmp_path / 'parent.py').stdout == f'{os.getpid()}\n'
