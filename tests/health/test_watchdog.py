"""The watchdog in real jobs: some rank never comes to where the others wait."""

from __future__ import annotations

import re
import subprocess

import pytest

from mnx.errors import ArgumentError
from mnx.health.watchdog import TIMEOUT, timeout_of
from tests.launching import START_AT_ANY_TIME, WAIT_FOR_ALL_FAILURES, mpiexec, starts_jobs

pytestmark = starts_jobs

START = f"""{START_AT_ANY_TIME}
import os, signal, sys, threading, time
import numpy as np
import mnx
from mnx.health import watchdog

comm = mnx.create_communicator('naive')

def the_watchdog():
    found = [thread for thread in threading.enumerate() if isinstance(thread, watchdog.Watchdog)]
    return found[0] if found else None

"""


def run(
    program: str, n: int = 2, *, start: str = START, timeout: object = 2, **env: str
) -> subprocess.CompletedProcess[str]:
    result = mpiexec(n, start + program, env={'MNX_TIMEOUT': str(timeout), **env})
    print(f'exit status {result.returncode}')
    print(result.stdout[-3000:])
    return result


def line_of(program: str, words: str) -> int:
    lines = (START + program).splitlines()
    return 1 + next(i for i, line in enumerate(lines) if words in line)


def rows(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return mark, state, call and line of the ranks in the one report of a job that was ended."""
    assert result.returncode != 0
    assert result.stdout.count('[mnx] no progress') == 1
    found = re.findall(r'^([> ]) ([0-9, -]*[0-9]) {2,}\S+ +(.*)$', result.stdout, re.MULTILINE)
    return {ranks: f'{mark} {" ".join(rest.split())}' for mark, ranks, rest in found}


# what rank 1 does, what is said of it, and of which line
ODD = {
    'sleeps': ('time.sleep(1000)', 'elsewhere', True),
    'computes': ('while True: np.ones((500, 500)) @ np.ones((500, 500))', 'elsewhere', True),
    'computes_in_python': ('while True: pass', 'elsewhere', True),
    'is_stopped': ('os.kill(os.getpid(), signal.SIGSTOP)', 'no answer', False),
    'has_ended': ('sys.exit()', 'has ended', False),
    'has_finalized': ('from mpi4py import MPI; MPI.Finalize()', 'has ended', False),
}


@pytest.mark.parametrize(('odd', 'state', 'has_line'), ODD.values(), ids=ODD)
def test_one_rank_does_not_come(odd: str, state: str, has_line: bool) -> None:
    program = f"""
if comm.rank == 1:
    {odd}
comm.allreduce_obj(1)
"""
    result = run(program, n=3, MNX_CHECK='0')  # with it, a rank that has ended says so itself
    table = rows(result)
    assert set(table) == {'0, 2', '1'}
    line = line_of(program, 'allreduce_obj')
    assert re.search(rf'^  waits \d+ allreduce_obj .*:{line}$', table['0, 2'])
    assert table['1'].startswith(f'> {state}')
    if has_line:
        assert table['1'].endswith(f':{line_of(program, odd)}')
    assert result.stdout.count(' rank 1') == 1  # in the sentence that says why
    assert 'MNX_TIMEOUT=2 ' in result.stdout


def test_another_call() -> None:
    result = run('comm.recv(0, 5) if comm.rank == 1 else comm.barrier()', n=3)
    table = rows(result)
    assert ' barrier ' in table['0, 2']
    assert ' recv ' in table['1']
    assert table['1'].startswith('>')


def test_a_message_that_never_comes() -> None:
    assert ' recv ' in rows(run('comm.recv((comm.rank + 1) % 2, tag=1)'))['0-1']


def test_groups_wait_for_one_another() -> None:
    result = run(
        """
row, column = comm.split(comm.rank // 2, comm.rank), comm.split(comm.rank % 2, comm.rank)
if comm.rank in (0, 3):
    row.allreduce_obj(1)
column.allreduce_obj(1)
row.allreduce_obj(1)
""",
        n=4,
    )
    assert set(rows(result)) == {'0, 3', '1-2'}
    assert 'wait for one another at different places' in result.stdout


@pytest.mark.parametrize('make', ['comm.split(comm.rank % 2, comm.rank)', 'comm.group([1, 3])'])
def test_a_part_that_stands_still(make: str) -> None:
    program = f"""
part = {make}
if comm.rank == 3:
    time.sleep(1000)
if part is not None and comm.rank % 2:
    part.allreduce(np.ones(3))
comm.barrier()
"""
    table = rows(run(program, n=4))
    assert set(table) == {'0, 2', '1', '3'}
    assert re.search(rf'^> elsewhere .*:{line_of(program, "sleep")}$', table['3'])
    assert re.search(rf' waits \d+ allreduce .*:{line_of(program, "allreduce")}$', table['1'])


HALVES = f"""{START_AT_ANY_TIME}
import os, signal, sys, threading, time
import numpy as np
from mpi4py import MPI
import mnx
from mnx.health import watchdog
world = MPI.COMM_WORLD
"""


def test_communicators_over_parts_of_the_job_alone() -> None:
    """Nobody has made one over all ranks: ranks 1 and 3 know of each other only."""
    program = """
part = mnx.create_communicator('naive', world.Split(world.rank % 2))
part.barrier()
if world.rank == 3:
    time.sleep(1000)
if world.rank == 1:
    part.barrier()
world.Barrier()
"""
    result = run(program, n=4, start=HALVES)
    table = rows(result)
    assert 'no progress for 2 s among ranks 1, 3, the whole job of 4 ranks ends' in result.stdout
    assert set(table) == {'1', '3'}
    assert ' waits ' in table['1']
    assert table['3'].startswith('> elsewhere')


COLUMNS = {'columns': 'world.Split(world.rank // 2)', 'all': 'None'}


@pytest.mark.parametrize('last', COLUMNS.values(), ids=COLUMNS)
def test_the_watchdogs_of_several_communicators(last: str) -> None:
    """Rows and columns, or rows and all ranks: a report of who waits, and a good end without."""
    program = f"""
made = [mnx.create_communicator('naive', comm) for comm in (world.Split(world.rank % 2), {last})]
if world.rank == 1 and os.environ['MNX_TIMEOUT'] == '2':
    time.sleep(1000)
for comm in made:
    comm.barrier()
"""
    result = run(program, n=4, start=HALVES)
    if last == 'None':
        assert set(rows(result)) == {'0, 2-3', '1'}
    # with columns, ranks 0 and 2 may be the first to tell, of themselves
    assert result.returncode != 0
    assert re.search(r' waits +\d+ +barrier ', result.stdout)
    result = run(program, n=4, start=HALVES, timeout=600)
    assert (result.returncode, result.stdout) == (0, '')


def test_a_wait_in_another_thread() -> None:
    table = rows(
        run(
            """
def wait():
    comm.allreduce_obj(1)

threading.Thread(target=wait if comm.rank == 0 else time.sleep, args=comm.rank * (1000,)).start()
"""
        )
    )
    assert ' allreduce_obj ' in table['0']


def test_progress_during_the_grace() -> None:
    program = """
watchdog.GRACE = 1000

def wait_for(condition):
    while not condition():
        time.sleep(0.05)

def tell():
    wait_for(lambda: the_watchdog()._inquiry)
    open(sys.argv[0] + '.asks', 'w').close()

if comm.rank == 0:
    threading.Thread(target=tell).start()
if comm.rank == 1:
    wait_for(lambda: os.path.exists(sys.argv[0] + '.asks'))
comm.allreduce_obj(1)
wait_for(lambda: not the_watchdog()._inquiry)
print('went on')
"""
    result = run(program)
    assert result.returncode == 0
    assert result.stdout.count('went on') == 2
    assert '[mnx]' not in result.stdout


def test_the_next_rank_steps_in() -> None:
    result = run(
        """
if comm.rank == 0:
    watchdog.Watchdog._end_job = lambda *args: None  # its abort never comes
if comm.rank == 2:
    time.sleep(1000)
comm.allreduce_obj(1)
""",
        n=3,
    )
    assert rows(result)['2'].startswith('> elsewhere')


def test_without_the_except_hook() -> None:
    program = 'time.sleep(1000) if comm.rank == 1 else comm.barrier()'
    assert rows(run(program, MNX_EXCEPT_HOOK='0'))['1'].startswith('> elsewhere')


def test_children_have_no_watchdog() -> None:
    result = run(
        """
import multiprocessing

child = os.fork()
if child == 0:
    os._exit(the_watchdog() is not None)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
with multiprocessing.get_context('fork').Pool(2) as pool:
    assert pool.map(abs, [-1, 2]) == [1, 2]
assert the_watchdog() is not None
comm.barrier()
os.write(1, b'went on\\n')
""",
        timeout=600,
    )
    assert result.returncode == 0
    assert result.stdout.count('went on') == 2


@pytest.mark.parametrize('end', ['', 'comm.finalize()', 'from mpi4py import MPI; MPI.Finalize()'])
def test_programs_end_as_ever(end: str) -> None:
    program = f"""
import time
import mnx
from mnx.health import watchdog
watchdog.INTERVAL = 0.001  # it looks all the time
comm = mnx.create_communicator('naive')
comm.barrier()
if comm.rank == 1:
    time.sleep(0.2)
{end}
"""
    result = run(program, start='', timeout=600)
    assert result.returncode == 0
    assert result.stdout == ''


RANK_0 = """
import os
import mnx
from mnx.transports.launch import detect
os.environ['MNX_TIMEOUT'] = {values}[detect(os.environ).rank]
"""


@pytest.mark.parametrize(('values', 'runs'), [(['0', '600'], 'False'), (['600', '0'], 'True')])
def test_rank_0_decides(values: list[str], runs: str) -> None:
    program = RANK_0.format(values=values) + START + 'print(the_watchdog() is not None)'
    result = run(program, start='')
    assert result.returncode == 0
    assert result.stdout.split() == [runs, runs]


def test_bad_value_on_one_rank() -> None:
    program = RANK_0.format(values=['600', 'soon']) + WAIT_FOR_ALL_FAILURES + START
    result = run(program, start='')
    assert result.returncode != 0
    assert "0 for no watchdog, but got 'soon'" in result.stdout
    assert 'ranks 0-1 of 2' in result.stdout


NONE = {
    'a_rank_alone': """
from mpi4py import MPI
mnx.create_communicator('naive', MPI.COMM_SELF)
""",
    'mpi_for_one_thread': """
import mpi4py
mpi4py.rc.thread_level = 'serialized'
from mpi4py import MPI
mnx.create_communicator('naive')
""",
    'turned_off': """
os.environ['MNX_TIMEOUT'] = '0'
mnx.create_communicator('naive')
""",
}


@pytest.mark.parametrize('create', NONE.values(), ids=NONE)
def test_no_watchdog(create: str) -> None:
    program = f'import mnx, os, threading\n{create}\nprint(threading.active_count())'
    result = run(program, n=3, start='', timeout=600)
    assert result.returncode == 0
    assert result.stdout.split() == ['1'] * 3


def test_timeout_of() -> None:
    assert timeout_of({}) == timeout_of({'MNX_TIMEOUT': ''}) == TIMEOUT
    assert timeout_of({'MNX_TIMEOUT': '2.5'}) == 2.5
    assert timeout_of({'MNX_TIMEOUT': '0'}) == 0
    for text in ('-1', 'nan', 'ten'):
        with pytest.raises(ArgumentError, match=f"MNX_TIMEOUT is wrong.*'{text}'"):
            timeout_of({'MNX_TIMEOUT': text})
