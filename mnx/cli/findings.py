"""What the places of the ranks mean for the user: pure functions of facts.

Each returns a finding: is it well, what is there, and what to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OK, NOTE, WRONG = 'ok', 'note', 'wrong'  # a note is slow or unusual, but works

_THREADS = ('OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS')


@dataclass(frozen=True)
class Finding:
    """One line of ``mnx check``.

    Attributes
    ----------
    subject : str
        What was looked at.
    verdict : str
        'ok', 'note' (it works, but slowly or not as one may expect) or 'wrong'.
    text : str
        What was found.
    advice : str
        What to do; '' where nothing need be done.
    """

    subject: str
    verdict: str
    text: str
    advice: str = ''


@dataclass(frozen=True)
class Place:
    """Where one rank is, and what it may use.

    Attributes
    ----------
    node : int
        Number of the node.
    cores : frozenset of int
        The node's cores that this rank may run on.
    threads : int or None
        Threads for BLAS that the environment asks for; None if it says nothing.
    gpus : tuple of str
        GPUs that CuPy sees.
    problem : str
        Why NCCL cannot be used; '' if it can.
    has_driver : bool
        Whether the system has a driver of NVIDIA.
    """

    node: int
    cores: frozenset[int]
    threads: int | None = None
    gpus: tuple[str, ...] = ()
    problem: str = ''
    has_driver: bool = False


def threads_of(environ: Mapping[str, str]) -> int | None:
    """Return the number of BLAS threads that the environment asks for, or None.

    >>> threads_of({'OMP_NUM_THREADS': '2'})
    2
    """
    for name in _THREADS:
        value = environ.get(name, '')
        if value.isdigit() and int(value) > 0:
            return int(value)
    return None


def of_launch(launcher: str | None, started: int, size: int) -> Finding:
    """Judge whether the launcher's processes are the ranks that MPI joins."""
    if launcher is None:
        return Finding(
            'launcher', NOTE, 'one process, no launcher', 'For more: mpiexec -n 4 mnx check'
        )
    if started != size:
        return Finding(
            'launcher',
            NOTE,
            f'{launcher} started {started} processes, MPI joins {size}',
            'Fine if launchers are nested on purpose; else use the mpiexec of this MPI.',
        )
    return Finding('launcher', OK, f'{launcher} started {size} ranks, and MPI joins them')


def of_cores(places: Sequence[Place]) -> Finding:
    """Judge whether each rank has a core."""
    crowded = [(len(ranks), cores) for ranks, cores in _nodes(places) if len(ranks) > cores]
    if not crowded:
        return Finding('cores', OK, 'at least one for each rank')
    ranks, cores = max(crowded, key=lambda node: node[0] / node[1])
    return Finding(
        'cores',
        NOTE,
        f'{ranks} ranks share {_count(cores, "core")} of a node: waiting ranks take time of others',
        f'Start at most {cores} on a node. Or let those that wait yield: '
        'MPIR_CVAR_ENABLE_HEAVY_YIELD=1 with MPICH; Open MPI does it by itself.',
    )


def of_threads(places: Sequence[Place]) -> Finding:
    """Judge whether BLAS threads of all ranks fit on the cores."""
    for ranks, cores in _nodes(places):
        threads = [place.threads or len(place.cores) for place in ranks]
        if max(threads) > 1 and sum(threads) > cores:
            return Finding(
                'BLAS threads',
                NOTE,
                f'{_count(sum(threads), "thread")} of {_count(len(ranks), "rank")} on '
                f'{_count(cores, "core")} of a node: they hinder one another',
                f'OMP_NUM_THREADS={max(1, cores // len(ranks))} mpiexec ...',
            )
    return Finding('BLAS threads', OK, 'not more than cores, or one for each rank')


def of_gpus(places: Sequence[Place]) -> Finding:
    """Judge whether ranks that have a GPU can use NCCL."""
    for rank, place in enumerate(places):
        if place.problem and (place.gpus or place.has_driver):
            return Finding(
                'GPUs',
                NOTE,
                f"rank {rank} is on a node with NVIDIA's driver, but {place.problem}",
                'Install mnx[cuda12] or mnx[cuda13], whichever fits the driver (nvidia-smi).',
            )
    without = [rank for rank, place in enumerate(places) if not place.gpus]
    if len(without) == len(places):
        return Finding('GPUs', OK, 'none: arrays are on CPUs')
    if without:
        return Finding(
            'GPUs',
            NOTE,
            f'rank {without[0]} sees none, others do',
            'Let the launcher give every rank a GPU, or hide them: CUDA_VISIBLE_DEVICES=',
        )
    return Finding('GPUs', OK, 'every rank sees one, and NCCL')


def _nodes(places: Sequence[Place]) -> list[tuple[list[Place], int]]:
    """Return for each node its ranks and the number of cores they may use together."""
    nodes: dict[int, list[Place]] = defaultdict(list)
    for place in places:
        nodes[place.node].append(place)
    return [
        (ranks, len(frozenset().union(*(place.cores for place in ranks))))
        for ranks in nodes.values()
    ]


def _count(number: int, what: str) -> str:
    return f'{number} {what}{"s" * (number > 1)}'
