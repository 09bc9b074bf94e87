"""Jobs of which a rank never comes to the first communicator."""

from __future__ import annotations

import re
import signal

import pytest

from mnx.health import start_limit
from tests.launching import mpiexec, starts_jobs

START = """
import os, signal, sys, time
import mnx
from mnx.health import start_limit, watchdog
from mnx.transports.launch import detect
rank = detect(os.environ).rank
"""
MISSING = {
    'stopped': 'os.kill(os.getpid(), signal.SIGSTOP)',
    'busy': 'time.sleep(1000)',
    'after_mpi_has_started': 'from mpi4py import MPI; time.sleep(1000)',
}


@pytest.mark.parametrize('missing', MISSING.values(), ids=MISSING)
@starts_jobs
def test_the_others_say_that_they_wait(missing: str) -> None:
    program = f"""{START}
open(f'{{sys.argv[0]}}.{{rank}}', 'w').close()
while not all(os.path.exists(f'{{sys.argv[0]}}.{{other}}') for other in range(3)):
    time.sleep(0.01)  # a busy machine starts them far apart
if rank == 1:
    {missing}
mnx.create_communicator()
"""
    job = mpiexec(3, program, env={'MNX_TIMEOUT': '2'})
    assert job.returncode != 0
    said = set(re.findall(r'rank (\d) of 3 on \S+, which waits', job.stdout))
    assert said == {'0', '2'}
    line = program.splitlines().index('mnx.create_communicator()') + 1
    assert f'script.py", line {line} in' in job.stdout


@starts_jobs
def test_a_late_rank_is_waited_for() -> None:
    program = f"""{START}
start_limit.GRACE = watchdog.GRACE = 1000  # a busy machine keeps ranks waiting later, too
said = sys.argv[0] + '.said'
if rank == 0:
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
while rank == 1 and not (os.path.exists(said) and 'rank 0 of 2 on ' in open(said).read()):
    time.sleep(0.01)
mnx.create_communicator().barrier()
assert not any(signal.getitimer(signal.ITIMER_REAL))
os.write(1, b'went on\\n')
"""
    job = mpiexec(2, program, env={'MNX_TIMEOUT': '0.5'})
    assert job.returncode == 0, job.stdout
    assert job.stdout.count('went on') == 2


NO_LIMIT = {'turned_off': '0', 'the_program_has_an_alarm': '0.2'}


@pytest.mark.parametrize('timeout', NO_LIMIT.values(), ids=NO_LIMIT)
@starts_jobs
def test_no_limit(timeout: str) -> None:
    program = f"""{START}
seen = []

def alarm(*_):
    seen.append(os.write(1, b'of the program\\n'))

signal.signal(signal.SIGALRM, alarm)
if os.environ['MNX_TIMEOUT'] != '0':
    signal.setitimer(signal.ITIMER_REAL, 1000)
    start_limit.GRACE = 0.2
    watchdog.GRACE = 1000
if rank == 1:
    time.sleep(1)
mnx.create_communicator('naive', None)
assert signal.getsignal(signal.SIGALRM) is alarm
assert (signal.getitimer(signal.ITIMER_REAL)[0] > 900) == (os.environ['MNX_TIMEOUT'] != '0')
signal.setitimer(signal.ITIMER_REAL, 0.1)
while not seen:
    time.sleep(0.01)
"""
    job = mpiexec(2, program, env={'MNX_TIMEOUT': timeout})
    assert job.returncode == 0, job.stdout
    assert job.stdout.split('\n') == ['of the program'] * 2 + ['']


def test_the_program_s_alarm_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_limit, '_is_over', False)
    environ = {'PMI_RANK': '0', 'PMI_SIZE': '2', 'MNX_TIMEOUT': '100'}

    def meet() -> float:
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        return signal.getitimer(signal.ITIMER_REAL)[0]

    def own(*_: object) -> None: ...

    before = signal.signal(signal.SIGALRM, own)
    try:
        assert 100 < start_limit.limited(meet, environ) <= 102
        assert signal.getsignal(signal.SIGALRM) is own
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        # from now on there is the watchdog
        assert start_limit.limited(lambda: signal.getsignal(signal.SIGALRM), environ) is own
    finally:
        signal.signal(signal.SIGALRM, before)
