"""``mnx info``: what is installed, where the ranks are, and what 'auto' chooses for them."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Annotated, Any

from mnx import kernels
from mnx.cli import speech, tables
from mnx.communicators import Communicator, create_communicator
from mnx.transports import devices, launch, mpi_features
from mnx.transports.peer_memory import peer_memory_of

PACKAGES = ('numpy', 'chainer', 'cupy', 'mpi4py', 'mnx')
_WHEELS_OF_CUPY = ('cupy', 'cupy-cuda12x', 'cupy-cuda13x', 'cupy-cuda11x')


def add_to(app: Any, choose: Callable[[Callable[[], int]], None]) -> None:
    """Add the command to a typer application."""
    import typer

    @app.command()
    def info(
        as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
    ) -> None:
        """Versions, MPI and its features, ranks, nodes, GPUs, NCCL, and what 'auto' chooses."""
        choose(lambda: report(as_json=as_json))


def report(*, as_json: bool) -> int:
    """Print what there is. Collective."""
    facts = collect()
    if as_json:
        speech.print_json(facts)
    else:
        tables.print_table(('what', 'value'), rows(facts))
    return speech.OK


def collect() -> dict[str, Any]:
    """Return all facts, which can be written as JSON. Collective."""
    launched = launch.detect(os.environ)
    with create_communicator() as comm:
        return {
            'versions': versions(),
            'mpi': mpi_features.of_a_child() if comm.mpi_comm is None else mpi_features.features(),
            'launcher': None if launched is None else launched.launcher,
            'ranks': comm.allgather_obj(_own_facts(comm)),
            'nodes': comm.inter_size,
            'peer_memory': _reaches_others(comm),
            'auto': {'communicator': comm.name, 'reason': comm.reason.removeprefix("'auto': ")},
        }


def _reaches_others(comm: Communicator) -> bool | None:
    """Tell whether ranks of one node reach each other's memory; None if there is none to ask."""
    in_one_node = comm.inter_size == 1 < comm.size
    return peer_memory_of(comm._control) is not None if in_one_node else None


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages; None for one that is not there."""
    found = {name: _version(name) for name in PACKAGES}
    found['mnx'] = str(sys.modules['mnx'].__version__)
    return {'python': platform.python_version(), **found}


def _version(name: str) -> str | None:
    for distribution in _WHEELS_OF_CUPY if name == 'cupy' else (name,):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _own_facts(comm: Communicator) -> dict[str, Any]:
    seen = devices.visible()
    return {
        'rank': comm.rank,
        'host': platform.node(),
        'node': comm.inter_rank,
        'cores': cores(),
        'kernels': kernels.built,
        'gpus': list(seen.gpus),
        'nccl': f'{seen.nccl // 10000}.{seen.nccl // 100 % 100}' if seen.nccl else None,
        'problem_of_nccl': seen.problem,
    }


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the lines of the table: a pure function of what `collect` found."""
    for name, version in facts['versions'].items():
        yield name, version or 'not installed'
    yield from _rows_of_mpi(facts['mpi'])
    yield 'launcher', facts['launcher'] or 'none: one process'
    yield 'ranks', f'{len(facts["ranks"])} on {facts["nodes"]} node{"s" * (facts["nodes"] > 1)}'
    if facts['peer_memory'] is not None:
        yield 'memory of others', _with_peers(reached=facts['peer_memory'])
    yield 'loops in C', _with_kernels([rank['kernels'] for rank in facts['ranks']])
    for rank in facts['ranks']:
        gpus = ', '.join(rank['gpus']) or 'no GPU'
        nccl = f'NCCL {rank["nccl"]}' if rank['nccl'] else f'no NCCL: {rank["problem_of_nccl"]}'
        yield f'rank {rank["rank"]}', f'{rank["host"]}, {rank["cores"]} cores, {gpus}, {nccl}'
    yield 'auto', f'{facts["auto"]["communicator"]} ({facts["auto"]["reason"]})'


def _with_peers(*, reached: bool) -> str:
    if reached:
        return 'reached'
    return 'not reached: sums go through what ranks share (MNX_PEER_MEMORY, ptrace_scope)'


def _with_kernels(built: list[bool]) -> str:
    """Return which ranks have the loops in C.

    >>> _with_kernels([True, False])
    'not on ranks 1: there NumPy does their work, with many small arrays more slowly'
    """
    if all(built):
        return 'yes'
    without = ', '.join(str(rank) for rank, there in enumerate(built) if not there)
    where = f'not on ranks {without}: there' if any(built) else 'no:'
    return f'{where} NumPy does their work, with many small arrays more slowly'


def _rows_of_mpi(mpi: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if 'problem' in mpi:
        yield 'MPI', f'cannot be used: {mpi["problem"]}'
        return
    yield 'MPI', mpi['library']
    yield 'MPI standard', mpi['standard']
    yield 'MPI threads', mpi['threads']
    yield 'MPI shared windows', 'yes' if mpi['shared_windows'] else 'no'
