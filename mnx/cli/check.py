"""``mnx check``: does this installation work, started in this way? If not, what is to be done?"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from mnx.cli import findings, self_test, speech, tables
from mnx.cli.findings import Finding, Place
from mnx.communicators import Communicator, create_communicator
from mnx.errors import LaunchError, MnxError
from mnx.transports import devices, launch

PATIENCE_S = '15'  # that a rank waits for others before the watchdog says for whom


def add_to(app: Any, choose: Callable[[Callable[[], int]], None]) -> None:
    """Add the command to a typer application."""
    import typer

    @app.command()
    def check(
        as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
    ) -> None:
        """Test launcher, transports, collectives and gradients, and say what to do."""
        choose(lambda: report(as_json=as_json))


def report(*, as_json: bool) -> int:
    """Print what was found; return the exit status. Collective."""
    os.environ.setdefault('MNX_TIMEOUT', PATIENCE_S)
    start = time.monotonic()
    try:
        found, status = list(_look()), speech.OK
    except LaunchError as error:
        found, status = [_of_strangers(error)], speech.UNFIT
    if not status and any(finding.verdict == findings.WRONG for finding in found):
        status = speech.FAILED
    if as_json:
        speech.print_json([asdict(finding) for finding in found])
    else:
        _print(found, time.monotonic() - start)
    return status


def _print(found: list[Finding], seconds: float) -> None:
    tables.print_table(('what', '', 'found'), ((f.subject, f.verdict, f.text) for f in found))
    for finding in found:
        if finding.advice:
            speech.say(f'\n{finding.subject}: {finding.advice}')
    worst = [f.subject for f in found if f.verdict == findings.WRONG]
    verdict = f'wrong: {", ".join(worst)}' if worst else 'all works'
    speech.say(f'\n{verdict} ({seconds:.1f} s)')


def _look() -> Iterator[Finding]:
    """Find out one thing after the other. Collective."""
    launched = launch.detect(os.environ)
    with create_communicator('naive') as comm:
        yield findings.of_launch(
            launched.launcher if launched else None, launched.size if launched else 1, comm.size
        )
        places = comm.allgather_obj(_own_place(comm))
        yield findings.of_cores(places)
        yield findings.of_threads(places)
        yield findings.of_gpus(places)
        with_nccl = all(place.gpus and not place.problem for place in places)
    for name in self_test.names(with_nccl=with_nccl):
        yield _of_communicator(name)


def _of_strangers(error: LaunchError) -> Finding:
    wrong, _, advice = str(error).removeprefix('create_communicator: ').partition(' Start the job')
    return Finding('launcher', findings.WRONG, wrong, advice and f'Start the job{advice}')


def _own_place(comm: Communicator) -> Place:
    seen = devices.visible()
    return Place(
        node=comm.inter_rank,
        cores=frozenset(cores()),
        threads=findings.threads_of(os.environ),
        gpus=seen.gpus,
        problem=seen.problem,
        has_driver=Path('/proc/driver/nvidia/version').exists(),
    )


def cores() -> set[int]:
    """Return the cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _of_communicator(name: str) -> Finding:
    """Test one communicator. Collective."""
    start = time.monotonic()
    try:
        with create_communicator(name) as comm:
            problems = self_test.problems(comm)
    except MnxError as error:  # on every rank, or on none
        problems = [f'{type(error).__name__}: {error}']
    if problems:
        return Finding(name, findings.WRONG, '; '.join(problems[:4]), _ADVICE)
    milliseconds = 1000 * (time.monotonic() - start)
    return Finding(
        name, findings.OK, f'messages, collectives and gradients are exact ({milliseconds:.0f} ms)'
    )


_ADVICE = (
    'The other communicators may work: create_communicator takes their names. `mnx info --json` '
    'holds what a report of this fault should show.'
)
