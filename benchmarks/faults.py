"""What becomes of a job of which one rank fails: a table of real jobs, processes and signals.

    python benchmarks/faults.py                           # all of it, eight minutes; docs/faults.md
    python benchmarks/faults.py --ranks 2 --places forward,backward --ways SIGKILL

Each job is `faulty_training.py` with the mpiexec beside this Python. The last rank fails, where a
checkpoint is written the one that writes it. Exit status 1 if a job does not end by itself, ends
as if all were well, leaves a process behind or a checkpoint that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import numpy as np
from faulty_training import PLACES, WAYS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from tests.launching import find_mpiexec, mpiexec  # noqa: E402

RESULTS = HERE / 'results' / 'faults'
PAGE = ROOT / 'docs' / 'faults.md'
TIMEOUT = 2  # seconds, MNX_TIMEOUT of the jobs in which a rank is stopped
UNDER_RUN = ' under mnx run'
HANGS = 120  # seconds after which a job does not end by itself

INTRODUCTION = """\
# What ends a job of which one rank fails

One rank of a small training fails, in each of five ways, at each of six places. These are real
jobs: `mpiexec` starts them, the processes and the signals are the system's. `make faults` runs
them all and writes this page, by `benchmarks/faults.py`. n is the number of ranks.

| column | |
|---|---|
| seconds | from the failure until `mpiexec` has returned |
| status | that of `mpiexec`; not 0, so that a batch script notices |
| output | tells which *rank* failed; or all *who wait* for it; or just by which *signal* it ended |

**An exception, `sys.exit(3)`** end the job at once. Half a second is for the failures of other
ranks to become known, so that the report can tell which was first.

**`SIGKILL`**, mostly the system's when memory is short: no process of mnx is left to speak, since
the launcher ends the others within milliseconds. Open MPI's launcher names the rank. MPICH's names
a host and a PID, which may be of a process that it has ended itself. [`mnx
run`](guide/command_line.md#mnx-run) gives each rank a parent, which names it
([what to do](guide/troubleshooting.md#killed)).

**`SIGSTOP`** stands for every rank that does not go on: a debugger, a file server that hangs,
swapping. Only a limit can tell it from a slow one: `MNX_TIMEOUT`, {timeout} seconds here, 600 by
default. Then a rank is given ten seconds to answer the [watchdog](guide/hangs.md), or, before the
first communicator, the others two seconds to say that they wait.

After each job no process was left, and the last complete checkpoint could be read.
"""

BUSY = """
**The machine was busy with other work: the seconds are its scheduler's, too.**
"""


@dataclass(frozen=True)
class Case:
    """One job."""

    ranks: int
    place: str
    way: str

    @property
    def failing_rank(self) -> int:
        return 0 if self.place == 'checkpoint' else self.ranks - 1

    @property
    def command(self) -> list[object]:
        script = HERE / 'faulty_training.py'
        program = ['-m', 'mnx', 'run', script] if self.way.endswith(UNDER_RUN) else [script]
        return [*program, self.place, self.way.removesuffix(UNDER_RUN)]


@dataclass(frozen=True)
class Outcome:
    """What became of it; `status` is None if it had to be ended from outside."""

    ranks: int
    place: str
    way: str
    seconds: float | None
    status: int | None
    tells: str
    problems: list[str]


def observe(case: Case) -> tuple[Outcome, str]:
    """Run one job; return what became of it, and its output."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        status, output = start(case, folder)
        end = time.time()
        failed = folder / 'failed'
        seconds = end - float(failed.read_text()) if failed.exists() else None
        problems = list(problems_of(case, status, folder))
        tells = told(output, case)
    return Outcome(
        **asdict(case), seconds=seconds, status=status, tells=tells, problems=problems
    ), (output)


def start(case: Case, folder: Path) -> tuple[int | None, str]:
    program, *words = [*case.command, '--rank', case.failing_rank, '--out', folder]
    try:
        job = mpiexec(
            case.ranks,
            Path(str(program)),
            *words,
            timeout=HANGS,
            env={'MNX_TIMEOUT': str(TIMEOUT)} if case.way == 'SIGSTOP' else {},
        )
    except subprocess.TimeoutExpired as error:
        return None, str(error.output)
    return job.returncode, job.stdout


def told(output: str, case: Case) -> str:
    """Return whom the output names."""
    others = re.findall(r'rank (\d+) of \d+ on \S+, which waits', output)
    # Open MPI's launcher: "Process name: [prterun-host-4711@1,3]" is rank 3
    if re.search(rf'\brank {case.failing_rank}\b|@\d+,{case.failing_rank}\]', output):
        return 'rank'
    if len(set(others)) == case.ranks - 1:
        return 'who wait'
    return 'signal' if re.search(r'signal (\d+)', output) else 'nothing'


def problems_of(case: Case, status: int | None, folder: Path) -> Iterator[str]:
    """Return what should not have come of it."""
    if not (folder / 'failed').exists():
        yield 'it did not come to the failure'
    if status is None:
        yield f'it did not end in {HANGS} s'
    if status == 0:
        yield 'its exit status says that all was well'
    left = [pid for pid in pids(folder) if is_left(pid)]
    if left:
        yield f'{len(left)} processes were left'
    if case.place != 'start':
        yield from problems_of_checkpoint(folder / 'checkpoint')


def pids(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob('pid.*')]


def is_left(pid: int) -> bool:
    """Return whether a process is still there after a while, and end it."""
    end = time.monotonic() + 20
    try:
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def problems_of_checkpoint(file: Path) -> Iterator[str]:
    try:
        with np.load(file, allow_pickle=True) as entries:
            assert all(np.size(entries[key]) for key in entries.files)
    except Exception as error:  # of whatever kind: it was not whole
        yield f'the last checkpoint cannot be read ({error})'


# --- the page ------------------------------------------------------------------------------------


def table(outcomes: list[Outcome]) -> str:
    """Return one row for each place and way, three columns for each number of ranks."""
    sizes = sorted({o.ranks for o in outcomes})
    head = ['one rank fails', 'by']
    head += [f'{word}, n = {n}' for n in sizes for word in ('seconds', 'status', 'output')]
    rows = [head, ['---', '---', *['---:', '---:', '---'] * len(sizes)]]
    for place, way in dict.fromkeys((o.place, o.way) for o in outcomes):
        found = {o.ranks: o for o in outcomes if (o.place, o.way) == (place, way)}
        rows.append([PLACES[place], way] + [c for n in sizes for c in cells(found.get(n))])
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def cells(outcome: Outcome | None) -> list[str]:
    if outcome is None:
        return ['', '', '']
    seconds = '' if outcome.seconds is None else f'{outcome.seconds:.2f}'
    status = 'none' if outcome.status is None else str(outcome.status)
    return [seconds, status, outcome.tells]


def section(result: dict[str, object]) -> str:
    """Return the part of the page for one MPI."""
    outcomes = [Outcome(**row) for row in result['rows']]  # type: ignore[attr-defined]
    facts: dict[str, str] = result['machine']  # type: ignore[assignment]
    busy = BUSY if float(facts['load']) >= float(facts['cores']) else ''
    failures = [
        f'- {o.place}, {o.way}, n = {o.ranks}: {problem}'
        for o in outcomes
        for problem in o.problems
    ]
    wrong = '\n'.join(['', '**Not as it should be:**', '', *failures, '']) if failures else ''
    return (
        f'## {facts["MPI"]}\n\n{table(outcomes)}{wrong}\nPython {facts["Python"]}, '
        f'{facts["cores"]} cores. Load of the machine before: {facts["load"]}.\n{busy}'
    )


def page(results: list[dict[str, object]]) -> str:
    """Return docs/faults.md."""
    return '\n'.join([INTRODUCTION.format(timeout=TIMEOUT), *map(section, results)])


def family() -> str:
    version = subprocess.check_output([find_mpiexec(), '--version'], text=True)
    return 'openmpi' if 'Open MPI' in version else 'mpich'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--ranks', default='2,4')
    parser.add_argument('--places', default=','.join(PLACES))
    parser.add_argument('--ways', default=','.join([*WAYS, f'SIGKILL{UNDER_RUN}']))
    parser.add_argument('--show', action='store_true', help='print what the jobs print')
    parser.add_argument('--no-page', action='store_true', help='leave docs/faults.md as it is')
    options = parser.parse_args()
    cases = [
        Case(int(n), place, way)
        for place in options.places.split(',')
        for way in options.ways.split(',')
        for n in options.ranks.split(',')
    ]
    facts = machine.describe()
    outcomes = []
    for case in cases:
        outcome, output = observe(case)
        outcomes.append(outcome)
        print(*asdict(case).values(), *cells(outcome), *outcome.problems, sep='  ', flush=True)
        if options.show or outcome.problems:
            print(output)
    if not options.no_page:
        RESULTS.mkdir(parents=True, exist_ok=True)
        rows = [asdict(outcome) for outcome in outcomes]
        text = json.dumps({'machine': facts, 'rows': rows}, indent=1)
        (RESULTS / f'{family()}.json').write_text(text + '\n')
        PAGE.write_text(page([json.loads(f.read_text()) for f in sorted(RESULTS.glob('*.json'))]))
    sys.exit(any(outcome.problems for outcome in outcomes))


if __name__ == '__main__':
    main()
