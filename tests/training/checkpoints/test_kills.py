"""A training that is killed goes on with the same bits, whenever that was: real processes, SIGKILL.

Every job is one of its own, so once is enough for the whole suite.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launching import clean_environment, find_mpiexec, mpiexec

HERE = Path(__file__).parent
ITERATIONS = 40


@pytest.fixture(autouse=True)
def only_once(comm):
    if comm.size > 1:
        pytest.skip('starts jobs of its own, whatever the number of ranks here')


class Job:
    """job.py on some ranks, from its first line of output on."""

    def __init__(self, n_ranks: int, out: Path) -> None:
        script = HERE / 'job.py'
        command = [find_mpiexec(), '-n', n_ranks, sys.executable, script, out, ITERATIONS]
        self.log = open(f'{out}.log', 'w+')  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *args: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def output(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def words_after(self, word: str, timeout: float = 100) -> list[str]:
        """Wait for the line that begins with a word; return its other words."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for line in self.output().splitlines(keepends=True):
                if line.startswith(word) and line.endswith('\n'):
                    return line.split()[1:]
            assert self.process.poll() in (None, 0), self.output()
            time.sleep(0.01)
        raise TimeoutError(self.output())

    def kill(self, ranks: str, source: random.Random) -> bool:
        """Kill one rank, or all; tell whether the job has ended by that."""
        pids = [int(pid) for pid in self.words_after('STARTED')]
        for pid in [source.choice(pids)] if ranks == 'one' else pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=100)
        return self.process.returncode != 0


def finish(n_ranks: int, out: Path) -> str:
    """Let a training come to its end; return what it says of its result."""
    with Job(n_ranks, out) as job:
        result = ' '.join(job.words_after('FINISHED'))
        assert job.process.wait(timeout=100) == 0
        return result


def kills(n_ranks: int, folder: Path, expected: str, source: random.Random) -> Iterator[Path]:
    """Kill trainings at random moments, for ever; each that comes to its end is compared."""
    while True:
        out = folder / f'run_{source.random()}'
        is_running = True
        while is_running:
            before = finished_sets(out)
            with Job(n_ranks, out) as job:
                job.words_after('STARTED')
                time.sleep(source.uniform(0, 1.2))
                is_running = job.kill(source.choice(['one', 'all']), source)
                told = job.output()
            assert 'DataError' not in told, told
            assert 'ArgumentError' not in told, told
            if before:  # unless it was killed before it could say so
                assert f'go on from {before[-1]}' in told or 'checkpoint:' not in told, told
            if is_running:
                yield out
        assert ' '.join(told.partition('FINISHED ')[2].splitlines()[0].split()) == expected


def finished_sets(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob('checkpoint/*/manifest.json'))


def campaign(folder: Path, n_ranks: int, n_kills: int) -> None:
    expected = finish(n_ranks, folder / 'whole')
    source = random.Random(n_kills)
    n_unfinished = 0
    for number, out in enumerate(kills(n_ranks, folder, expected, source), 1):
        sets = list(out.glob('checkpoint/*_iteration_*'))
        n_unfinished += any(not (path / 'manifest.json').exists() for path in sets)
        if number == n_kills:
            break
    assert finish(n_ranks, out) == expected
    print(f'{n_kills} kills, {n_unfinished} while a set was written or removed')


@pytest.mark.limit(600)
def test_killed_at_random_moments(tmp_path):
    campaign(tmp_path, n_ranks=2, n_kills=4)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.limit(3600)
@pytest.mark.parametrize('n_ranks', [2, 3])
def test_killed_100_times(tmp_path, n_ranks):
    campaign(tmp_path, n_ranks, n_kills=100)


@pytest.mark.parametrize('stride', [5, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.limit(600)
def test_killed_before_a_step_on_the_disk(tmp_path, stride):
    done = mpiexec(1, HERE / 'every_step.py', tmp_path, stride, timeout=500)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.rpartition('KILLS ')[2]) >= 30 // stride
