"""How all benchmarks measure: candidates take turns, the slowest rank counts, medians are shown.

repeat 1   raw · mnx · peer      a noisy moment hits all of them, and
repeat 2   raw · mnx · peer      a ratio is formed within one repeat
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import describe
from mpi4py import MPI

Candidate = Callable[[], object]
Row = dict[str, Any]

WARM_UP = 2


class Turn(NamedTuple):
    """One candidate in one repeat: seconds a call on the slowest rank, and what was counted."""

    seconds: float
    counted: float


def nothing() -> float:
    return 0.0


def take_turns(
    candidates: Mapping[str, Candidate],
    repeats: int,
    *,
    calls: int = 1,
    before: Candidate = nothing,
    counter: Callable[[], float] = nothing,
) -> dict[str, list[Turn]]:
    """Time all candidates in turn, `calls` calls a turn, each from a barrier on. Collective.

    `before` is called before each turn and not timed. What `counter` rises by during a turn, on
    all ranks together, is kept with it.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in candidates}
    for repeat in range(repeats + WARM_UP):
        for name, run in candidates.items():
            before()
            turn = _turn(run, calls, counter)
            if repeat >= WARM_UP:
                turns[name].append(turn)
    return turns


def _turn(run: Candidate, calls: int, counter: Callable[[], float]) -> Turn:
    world = MPI.COMM_WORLD
    world.Barrier()  # nothing is counted that belongs to the turn before
    counted, seconds = counter(), 0.0
    for _ in range(calls):
        world.Barrier()
        start = time.perf_counter()
        run()
        seconds += time.perf_counter() - start
    slowest = world.allreduce(seconds, MPI.MAX)
    return Turn(slowest / calls, world.allreduce(counter() - counted, MPI.SUM) / calls)


def summarize(turns: Mapping[str, list[Turn]], baseline: str) -> list[Row]:
    """Return one row a candidate: median microseconds, median ratio to the baseline, its quartiles.

    A ratio is that of two turns of one repeat.
    """
    base = np.array([turn.seconds for turn in turns[baseline]])
    found = []
    for name, taken in turns.items():
        seconds = np.array([turn.seconds for turn in taken])
        low, ratio, high = np.percentile(seconds / base, [25, 50, 75]).tolist()
        us = float(np.median(seconds)) * 1e6
        found.append({'candidate': name, 'us': us, 'ratio': ratio, 'quartiles': [low, high]})
    return found


def calls_for(nbytes: int) -> int:
    """Return how many calls make a turn that is long enough to be timed."""
    return max(1, min(50, 2**22 // max(nbytes, 1)))


def parser(doc: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument('--repeats', type=int, default=repeats)
    made.add_argument('--json', metavar='FILE', type=Path, help='write the rows to this file, too')
    return made


def numbers(text: str) -> list[int]:
    """Return the comma-separated sizes of an option, as in '4,64Ki,1Mi'.

    >>> numbers('4,64Ki,1Mi')
    [4, 65536, 1048576]
    """
    units = {'Ki': 2**10, 'Mi': 2**20}
    return [int(item.rstrip('KMi')) * units.get(item[-2:], 1) for item in text.split(',')]


def write(path: Path | None, benchmark: str, rows: list[Row]) -> None:
    """Write what was measured, how and on what machine; rank 0 does, and only if asked to."""
    if path is None or MPI.COMM_WORLD.rank != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        'benchmark': benchmark,
        'command': own_command(),
        'machine': describe(),
        'rows': rows,
    }
    path.write_text(json.dumps(found, indent=1) + '\n')


def own_command() -> str:
    """Return the command that started this job, without where its results go."""
    alone = MPI.COMM_WORLD.size == 1
    script, *given = sys.argv
    if '--json' in given:
        at = given.index('--json')
        del given[at : at + 2]
    words = ['python', f'benchmarks/{Path(script).name}', *given]
    return shlex.join(words if alone else ['mpiexec', '-n', str(MPI.COMM_WORLD.size), *words])
