"""The except hook in real jobs: one rank fails in some way while the others wait for it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mnx.transports import emergency
from tests.launching import (
    WAIT_FOR_ALL_FAILURES,
    clean_environment,
    find_mpiexec,
    mpiexec,
    starts_jobs,
)

pytestmark = starts_jobs

LIMIT_S = 20.0  # half a second on a quiet machine; a test must also pass on a busy one

START = """
import os, pathlib, signal, sys, time
import mnx
comm = mnx.create_communicator('naive')
folder = pathlib.Path(sys.argv[1])

def about_to_fail():
    (folder / f'failed{comm.rank}').write_text(str(time.time()))

def wait_for_the_others():
    comm.allreduce_obj(1)

wait_for_the_others()
"""


@dataclass
class Job:
    """What became of a job."""

    code: int
    output: str
    seconds: float  # from the first failure until mpiexec has returned


def run(folder: Path, program: str, n: int = 2, *, start: str = START, **env: str) -> Job:
    result = mpiexec(n, start + program, folder, env=env)
    end = time.time()
    texts = [path.read_text() for path in folder.glob('failed*')]
    failed = [float(text) for text in texts if text]  # a rank may be ended before it has written
    seconds = end - min(failed) if failed else 0.0
    print(f'ended {seconds:.2f} s after the failure, exit status {result.returncode}')
    print(result.stdout[-3000:])
    return Job(result.returncode, result.stdout, seconds)


def _is_hydra() -> bool:
    """Return whether the launcher is one that mnx must tell, as Open MPI's need not be told."""
    return b'Open MPI' not in subprocess.check_output([find_mpiexec(), '--version'])


def assert_ended_in_time(job: Job) -> None:
    assert job.code != 0
    assert 0 < job.seconds < LIMIT_S


ONE_RANK = {
    'exception': ("raise ValueError('boom')", 'ValueError: boom'),
    'interrupt': ('os.kill(os.getpid(), signal.SIGINT); time.sleep(1000)', 'KeyboardInterrupt'),
    'exit': ('sys.exit(3)', 'SystemExit: 3'),
    'exit_with_a_message': ("sys.exit('no such file')", 'SystemExit: no such file'),
    'argparse': (
        "import argparse; argparse.ArgumentParser().parse_args(['--unknown'])",
        'unrecognized arguments: --unknown',
    ),
}


@pytest.mark.parametrize(('failure', 'text'), ONE_RANK.values(), ids=ONE_RANK)
def test_one_rank_fails(failure: str, text: str, tmp_path: Path) -> None:
    job = run(
        tmp_path,
        f"""
print('healthy so far', comm.rank)
wait_for_the_others()
if comm.rank == 1:
    about_to_fail()
    {failure}
wait_for_the_others()
""",
    )
    assert_ended_in_time(job)
    assert text in job.output
    assert job.output.count('Traceback (most recent call last)') == 1
    assert 'rank 1 of 2 on ' in job.output
    assert job.output.count('healthy so far') == 2  # what other ranks printed is not lost


@pytest.mark.skipif(sys.version_info < (3, 12), reason='needs sys.monitoring')
def test_system_exit_written_out(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        """
def main():
    about_to_fail()
    return 3

if comm.rank == 1:
    raise SystemExit(main())
wait_for_the_others()
""",
    )
    assert_ended_in_time(job)
    assert 'SystemExit: 3' in job.output


def test_same_error_on_all_ranks_is_printed_once(tmp_path: Path) -> None:
    program = f"{WAIT_FOR_ALL_FAILURES}\nabout_to_fail()\nraise ValueError('the same')"
    job = run(tmp_path, program, n=4)
    assert_ended_in_time(job)
    assert job.output.count('ValueError: the same') == 1
    assert 'ranks 0-3 of 4 on ' in job.output


def test_first_of_different_errors_is_printed_last(tmp_path: Path) -> None:
    program = """
class Failure(Exception):
    def __str__(self):  # by then it is known when it failed
        (folder / f'told{comm.rank}').touch()
        return f'error of rank {comm.rank}'

before = folder / f'told{(comm.rank - 1) % 4}'
while comm.rank != 2 and not before.exists():
    time.sleep(0.01)
about_to_fail()
raise Failure
"""
    job = run(tmp_path, WAIT_FOR_ALL_FAILURES + program, n=4)
    assert_ended_in_time(job)
    places = [job.output.index(f'Failure: error of rank {rank}') for rank in (1, 0, 3, 2)]
    assert places == sorted(places)
    assert job.output.count('Traceback (most recent call last)') == 4


def test_all_ranks_exit_without_noise(tmp_path: Path) -> None:
    job = run(tmp_path, f'{WAIT_FOR_ALL_FAILURES}\nabout_to_fail()\nsys.exit(3)')
    assert_ended_in_time(job)
    assert 'Traceback' not in job.output
    assert 'mnx' not in job.output


def test_ranks_that_agree_to_exit_may_do_so_one_after_the_other(tmp_path: Path) -> None:
    program = """
from mnx.health import except_hook
time.sleep(2 * comm.rank)
except_hook.all_exit()
sys.exit(3)
"""
    job = run(tmp_path, program)
    assert job.code == 3
    assert '[mnx]' not in job.output
    assert 'Traceback' not in job.output


def test_killed_rank_ends_the_job(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        """
if comm.rank == 1:
    about_to_fail()
    os.kill(os.getpid(), 9)
wait_for_the_others()
""",
    )
    assert_ended_in_time(job)


def test_caught_exit_and_exit_with_0_do_not_end_the_job(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        """
import threading
if comm.rank == 1:
    try:
        sys.exit(3)
    except SystemExit:
        pass
    threading.Thread(target=sys.exit, args=(3,)).start()
else:
    time.sleep(0.3)
wait_for_the_others()
print('went on', comm.rank)
if comm.rank == 1:
    sys.exit(0)
wait = comm.rank == 0 and time.sleep(1)
print('done', comm.rank)
""",
    )
    assert job.code == 0
    assert job.output.count('went on') == 2
    assert 'done 0' in job.output


def test_children_do_not_end_the_job(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        """
import atexit, multiprocessing

def worker():
    raise ValueError('in a worker')

child = os.fork()
if child == 0:
    atexit.register(os._exit, 1)  # before mpi4py would finalize MPI, which is the parent's
    raise ValueError('in a fork')
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
process = multiprocessing.get_context('fork').Process(target=worker)
process.start()
process.join()
assert process.exitcode == 1
wait_for_the_others()
os.write(1, b'went on\\n')
""",
    )
    assert job.code == 0, job.output
    assert job.output.count('went on') == 2
    assert job.output.count('ValueError: in a fork') == 2


def test_the_program_s_own_hook_is_shown(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        """
old = sys.excepthook
def hook(kind, error, traceback):
    print('in colours:', error, file=sys.stderr)
    if sys.version_info < (3, 12):
        old(kind, error, traceback)  # there, who replaces the hook must call the old one
sys.excepthook = hook
if comm.rank == 1:
    about_to_fail()
    raise ValueError('boom')
wait_for_the_others()
""",
    )
    assert_ended_in_time(job)
    assert job.output.count('in colours: boom') == 1
    assert 'rank 1 of 2 on ' in job.output


def test_long_report_arrives_whole(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        """
if comm.rank == 1:
    about_to_fail()
    raise ValueError(''.join(f'line {k}\\n' for k in range(20_000)))
wait_for_the_others()
""",
    )
    assert_ended_in_time(job)
    assert all(f'line {k}\n' in job.output for k in (0, 10_000, 19_999))


def test_mpi_without_a_communicator_of_mnx(tmp_path: Path) -> None:
    program = """
import sys
import mnx
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 1:
    raise ValueError('boom')
MPI.COMM_WORLD.Barrier()
"""
    result = mpiexec(2, program)
    assert result.returncode != 0
    assert result.stdout.count('ValueError: boom') == 1
    assert 'rank 1 of 2 on ' in result.stdout


BEFORE = """
import os, pathlib, sys, time
import mnx
from mnx.transports.launch import detect
rank = detect(os.environ).rank
folder = pathlib.Path(sys.argv[1])

def about_to_fail():
    (folder / ('failed' + str(rank))).write_text(str(time.time()))

def be_without_mpi4py():
    (folder / 'mpi4py').mkdir()
    (folder / 'mpi4py' / '__init__.py').write_text("raise ImportError('no mpi4py here')")
    sys.path.insert(0, str(folder))

if rank == 1:
    {one}
{others}
"""
LATE = 'time.sleep(0.5); about_to_fail(); '  # the others wait by then

BEFORE_COMMUNICATOR = {
    'exception': ("raise ValueError('boom')", 'ValueError: boom', 1),
    'exit': ('sys.exit(3)', 'SystemExit: 3', 3),
    'missing_file': ("open('missing')", 'FileNotFoundError', 1),
    'no_mpi4py': ('be_without_mpi4py(); mnx.create_communicator()', 'LaunchError: ', 1),
}
OTHERS = {'start_mpi': 'mnx.create_communicator()', 'never_start_mpi': 'time.sleep(1000)'}


@pytest.mark.parametrize('others', OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    ('failure', 'text', 'code'), BEFORE_COMMUNICATOR.values(), ids=BEFORE_COMMUNICATOR
)
def test_one_rank_fails_before_mpi_starts(
    failure: str, text: str, code: int, others: str, tmp_path: Path
) -> None:
    job = run(tmp_path, BEFORE.format(one=LATE + failure, others=others), start='')
    assert_ended_in_time(job)
    assert job.code == code
    if _is_hydra() or 'SystemExit' not in text:  # Open MPI ends the job, by its own report
        assert job.output.count(text) == 1
    assert 'rank 1 of 2 on ' in job.output or not _is_hydra()


def test_unknown_name_on_one_rank(tmp_path: Path) -> None:
    program = BEFORE.format(
        one=LATE + "mnx.create_communicator('unknown')", others='mnx.create_communicator()'
    )
    job = run(tmp_path, program, start='')
    assert job.code != 0
    assert job.seconds < LIMIT_S
    assert 'Unrecognized communicator: "unknown"' in job.output


@pytest.mark.parametrize(
    ('failure', 'code'),
    [("raise ValueError('boom')", 1), ('sys.exit(3)', 3)],
    ids=['exception', 'exit'],
)
def test_all_ranks_fail_before_mpi_starts(failure: str, code: int, tmp_path: Path) -> None:
    program = BEFORE.format(one='pass', others=f'about_to_fail()\n{failure}')
    job = run(tmp_path, program, n=4, start='')
    assert_ended_in_time(job)
    assert job.code == code
    if _is_hydra():
        # Rank 0 alone, unless it starts so late that another's turn comes before.
        assert 1 <= job.output.count('failed, the whole job ends') < 4
        assert re.search(r'rank \d of 4 on .* failed, the whole job ends', job.output)


def test_programs_that_a_rank_runs_do_not_end_the_job(tmp_path: Path) -> None:
    program = """
import multiprocessing, os, subprocess, sys
import mnx

if __name__ == '__main__':
    child = subprocess.run([sys.executable, '-c', 'import mnx; raise ValueError("in a program")'])
    assert child.returncode == 1
    process = multiprocessing.get_context('spawn').Process(target=sys.exit, args=(3,))
    process.start()
    process.join()
    assert process.exitcode == 3
    comm = mnx.create_communicator()
    os.write(1, b'went on\\n')
"""
    job = run(tmp_path, program, start='')
    assert job.code == 0, job.output
    assert job.output.count('went on') == 2


def test_another_file_is_not_taken_for_the_launcher(tmp_path: Path) -> None:
    environ = {'PMI_RANK': '1', 'PMI_SIZE': '2'}
    assert emergency.bare_launcher(environ) is None
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / 'file').open('wb') as file:
        for opened in (file, ours):  # our socket: a launcher's would be inheritable
            environ['PMI_FD'] = str(opened.fileno())
            assert emergency.bare_launcher(environ) is None
        ours.set_inheritable(True)
        channel = emergency.bare_launcher(environ)
        assert channel is not None
        assert (channel.rank, channel.size) == (1, 2)
        assert emergency.bare_launcher(environ | {'PMI_SIZE': '1', 'PMI_RANK': '0'}) is None
    environ['PMI_FD'] = '10000'
    assert emergency.bare_launcher(environ) is None


def test_dies_by_a_signal_where_hydra_does_not_answer() -> None:
    program = """
import os, socket
import mnx
silent, _ = socket.socketpair()
silent.set_inheritable(True)
os.environ.update(PMI_RANK='1', PMI_SIZE='2', PMI_FD=str(silent.fileno()))
raise ValueError('boom')
"""
    result = subprocess.run(
        [sys.executable, '-c', program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    assert result.stderr.count('ValueError: boom') == 1


def test_communicator_over_some_ranks_only(tmp_path: Path) -> None:
    program = """
import sys
import mnx
from mpi4py import MPI
half = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank // 2)
comm = mnx.create_communicator('naive', half) if MPI.COMM_WORLD.rank < 2 else None
if MPI.COMM_WORLD.rank == 1:
    raise ValueError('boom')
MPI.COMM_WORLD.Barrier()
"""
    result = mpiexec(4, program)
    assert result.returncode != 0
    assert 'rank 1 of 4 on ' in result.stdout


def test_turned_off_it_is_plain_python(tmp_path: Path) -> None:
    program = """
if comm.rank == 1:
    about_to_fail()
    sys.exit(3)
time.sleep(4)
print('rank 0 was let live')
"""
    job = run(tmp_path, program, MNX_EXCEPT_HOOK='0')
    assert job.code != 0
    assert 'rank 0 was let live' in job.output
    assert '[mnx]' not in job.output


@pytest.mark.parametrize('program', ['1 / 0', 'import sys; sys.exit(3)'])
def test_without_mpi_it_is_plain_python(program: str) -> None:
    def ended(env: dict[str, str]) -> tuple[int, str]:
        command = [sys.executable, '-c', f'import mnx; {program}']
        result = subprocess.run(
            command, env={**clean_environment(), **env}, capture_output=True, text=True, check=False
        )
        return result.returncode, result.stderr

    assert ended({}) == ended({'MNX_EXCEPT_HOOK': '0'})


BROKEN = """
import time
import mnx
from mnx.transports import emergency

class Broken:
    rank, size, carries_notices = 1, 2, True
    def notify(self, notice): pass
    def poll(self): {poll}
    def abort(self, code): {abort}

emergency.register(Broken())
raise ValueError('boom')
"""


@pytest.mark.parametrize(
    ('poll', 'abort'),
    [('return []', 'time.sleep(60)'), ('return []', '1 / 0'), ('1 / 0', 'pass')],
    ids=['abort_hangs', 'abort_fails', 'poll_fails'],
)
def test_ends_although_mpi_is_broken(poll: str, abort: str) -> None:
    result = subprocess.run(
        [sys.executable, '-c', BROKEN.format(poll=poll, abort=abort)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count('ValueError: boom') == 1
