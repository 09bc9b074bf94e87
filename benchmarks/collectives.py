"""Every collective of arrays, against mpi4py's call on buffers that are there already.

    mpiexec -n 4 python benchmarks/collectives.py
    mpiexec -n 2 python benchmarks/collectives.py --bytes 4,1Mi --only allreduce,bcast

`bytes` is the length of one array: what a rank passes in, or one of the `size` arrays of a row
(scatter, reduce_scatter, alltoall). mnx compares what the ranks call, learns shapes and dtypes from
the others, and returns new arrays; the raw call knows all that and fills an old one. `unchecked` is
mnx as with MNX_CHECK=0, and `meeting` is the comparison alone against an all-reduce of 40 bytes.
All results are compared with the raw ones before they are timed.
"""

from __future__ import annotations

import numpy as np
import timing
from mpi4py import MPI
from timing import Candidate, Row

import mnx
from mnx.communicators import Communicator

BASELINE = 'raw'
SIZES = '4,1Ki,64Ki,1Mi,16Mi'
NAMES = (
    'allreduce',
    'reduce',
    'reduce_scatter',
    'bcast',
    'gather',
    'allgather',
    'scatter',
    'alltoall',
)


class Raw:
    """The collectives by mpi4py, from and into arrays that are there already."""

    def __init__(self, x: np.ndarray, row: np.ndarray) -> None:
        self.world = MPI.COMM_WORLD.Dup()
        self.x, self.row = x, row
        self.one, self.all = np.empty_like(x), np.empty_like(row)
        self.at_root = self.world.rank == 0
        self.shared = x.copy()

    def allreduce(self) -> np.ndarray:
        self.world.Allreduce(self.x, self.one)
        return self.one

    def reduce(self) -> np.ndarray | None:
        self.world.Reduce(self.x, self.one if self.at_root else None)
        return self.one if self.at_root else None

    def reduce_scatter(self) -> np.ndarray:
        self.world.Reduce_scatter_block(self.row, self.one)
        return self.one

    def bcast(self) -> np.ndarray:
        self.world.Bcast(self.shared)
        return self.shared

    def gather(self) -> np.ndarray | None:
        self.world.Gather(self.x, self.all if self.at_root else None)
        return self.all if self.at_root else None

    def allgather(self) -> np.ndarray:
        self.world.Allgather(self.x, self.all)
        return self.all

    def scatter(self) -> np.ndarray:
        self.world.Scatter(self.row if self.at_root else None, self.one)
        return self.one

    def alltoall(self) -> np.ndarray:
        self.world.Alltoall(self.row, self.all)
        return self.all

    def close(self) -> None:
        self.world.Free()


def by_mnx(comm: Communicator, name: str, x: np.ndarray, row: np.ndarray) -> Candidate:
    """Return one collective of `comm`, of an array or of a row of arrays."""
    call = getattr(comm, name)
    given = row if name in ('reduce_scatter', 'scatter', 'alltoall') else x
    return lambda: call(given)


def unchecked_communicator() -> Communicator:
    """Return a communicator as MNX_CHECK=0 makes them, beside others that check."""
    comm = mnx.create_communicator()
    comm.meetings.checks = False
    return comm


def check(name: str, found: dict[str, Candidate]) -> None:
    """End the benchmark unless all candidates give the same."""
    results = [run() for run in found.values()]
    if not all(_equal(result, results[0]) for result in results):
        raise SystemExit(f'{name}: mnx and MPI give different results')


def _equal(result: object, expected: object) -> bool:
    if result is None or expected is None:
        return result is expected
    return np.array_equal(np.asarray(result), np.asarray(expected))


def measure(name: str, nbytes: int, repeats: int, comms: dict[str, Communicator]) -> list[Row]:
    """Return one row for each candidate. Collective."""
    world = MPI.COMM_WORLD
    x = np.full(nbytes // 4, world.rank + 1, 'f4')
    row = np.arange(world.size * x.size, dtype='f4').reshape(world.size, -1) % 8 + world.rank
    raw = Raw(x, row)
    found: dict[str, Candidate] = {BASELINE: getattr(raw, name)}
    found.update({key: by_mnx(comm, name, x, row) for key, comm in comms.items()})
    check(name, found)
    calls = timing.calls_for(nbytes)
    rows = timing.summarize(timing.take_turns(found, repeats, calls=calls), BASELINE)
    raw.close()
    return [{**row, 'call': name, 'bytes': nbytes, 'ranks': world.size} for row in rows]


def measure_empty(repeats: int, comms: dict[str, Communicator]) -> list[Row]:
    """Return rows for the barrier, and for the meeting that precedes every collective."""
    world, words = MPI.COMM_WORLD.Dup(), np.zeros(5, 'i8')

    def meeting() -> None:
        with comms['mnx'].together('meeting'):
            pass

    barriers: dict[str, Candidate] = {BASELINE: world.Barrier}
    barriers.update({key: comm.barrier for key, comm in comms.items()})
    meetings: dict[str, Candidate] = {
        BASELINE: lambda: world.Allreduce(MPI.IN_PLACE, words, MPI.MAX),
        'mnx': meeting,
    }
    rows = []
    for name, found in (('barrier', barriers), ('meeting', meetings)):
        turns = timing.take_turns(found, repeats, calls=timing.calls_for(4))
        table = timing.summarize(turns, BASELINE)
        rows += [{**row, 'call': name, 'bytes': 0, 'ranks': world.size} for row in table]
    world.Free()
    return rows


def show(rows: list[Row]) -> None:
    """Print rows of several calls: a line for each call and size."""
    for name, nbytes in dict.fromkeys((row['call'], row['bytes']) for row in rows):
        cells = [
            f'{row["candidate"]} {row["us"]:10.2f} us {row["ratio"]:6.2f}x'
            for row in rows
            if (row['call'], row['bytes']) == (name, nbytes)
        ]
        print(f'{name:15} {nbytes:10} B   ' + '   '.join(cells), flush=True)


def main() -> None:
    parser = timing.parser(__doc__, repeats=11)
    parser.add_argument('--bytes', default=SIZES)
    parser.add_argument('--only', default=','.join(NAMES))
    options = parser.parse_args()
    comms = {'mnx': mnx.create_communicator(), 'unchecked': unchecked_communicator()}
    rows: list[Row] = []
    for name in [None, *options.only.split(',')]:
        sizes = timing.numbers(options.bytes) if name else [0]
        for nbytes in sizes:
            table = (
                measure(name, nbytes, options.repeats, comms)
                if name
                else measure_empty(options.repeats, comms)
            )
            rows += table
            if MPI.COMM_WORLD.rank == 0:
                show(table)
    timing.write(options.json, 'collectives', rows)


if __name__ == '__main__':
    main()
