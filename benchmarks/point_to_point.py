"""comm.send and comm.recv between two ranks, against mpi4py's Send and Recv: ping-pong.

    mpiexec -n 2 python benchmarks/point_to_point.py
    mpiexec -n 2 python benchmarks/point_to_point.py --bytes 4,64Ki,4Mi --json point_to_point.json

The time is that of one way: half a round trip. Raw Send and Recv fill an array that is there
already and must know its shape; mnx's message brings shape and dtype along and returns a new array.
`pickled` is mpi4py's lower-case send and recv of the same array.
"""

from __future__ import annotations

import numpy as np
import timing
from mpi4py import MPI
from timing import Candidate, Row

import mnx
from mnx.communicators import Communicator

BASELINE = 'raw'
SIZES = '4,64,1Ki,16Ki,64Ki,256Ki,1Mi,4Mi,16Mi'


def ping_pong(send: Candidate, receive: Candidate, trips: int) -> Candidate:
    """Return a call that lets a message go to and fro between ranks 0 and 1."""
    steps = {0: (send, receive), 1: (receive, send)}.get(MPI.COMM_WORLD.rank, ())

    def run() -> None:
        for _ in range(trips):
            for step in steps:
                step()

    return run


def candidates(nbytes: int, trips: int, comm: Communicator) -> dict[str, Candidate]:
    world = MPI.COMM_WORLD
    peer = 1 - world.rank
    x, y = np.arange(nbytes // 4, dtype='f4'), np.empty(nbytes // 4, 'f4')
    pairs: dict[str, tuple[Candidate, Candidate]] = {
        BASELINE: (lambda: world.Send(x, peer), lambda: world.Recv(y, peer)),
        'mnx': (lambda: comm.send(x, peer), lambda: comm.recv(peer)),
        'pickled': (lambda: world.send(x, peer), lambda: world.recv(None, peer)),
    }
    _check(x, pairs['mnx'])
    return {name: ping_pong(*pair, trips) for name, pair in pairs.items()}


def _check(x: np.ndarray, pair: tuple[Candidate, Candidate]) -> None:
    """End the benchmark unless the message arrives."""
    send, receive = pair
    if MPI.COMM_WORLD.rank == 0:
        send()
    elif MPI.COMM_WORLD.rank == 1 and not np.array_equal(np.asarray(receive()), x):
        raise SystemExit(f'{x.nbytes} bytes did not arrive as they were sent')


def main() -> None:
    parser = timing.parser(__doc__, repeats=15)
    parser.add_argument('--bytes', default=SIZES)
    options = parser.parse_args()
    if MPI.COMM_WORLD.size < 2:
        raise SystemExit('point_to_point.py needs two ranks: mpiexec -n 2 python ...')
    rows: list[Row] = []
    with mnx.create_communicator() as comm:
        for nbytes in timing.numbers(options.bytes):
            trips = timing.calls_for(nbytes)
            table = timing.summarize(
                timing.take_turns(candidates(nbytes, trips, comm), options.repeats), BASELINE
            )
            for row in table:
                row.update(bytes=nbytes, us=row['us'] / (2 * trips))
            rows += table
            if comm.rank == 0:
                show(nbytes, table)
    timing.write(options.json, 'point_to_point', rows)


def show(nbytes: int, table: list[Row]) -> None:
    """Print one size: one-way time, bandwidth, ratio of each candidate."""
    cells = [
        f'{row["candidate"]} {row["us"]:9.2f} us {nbytes / row["us"] / 1e3:6.2f} GB/s'
        f' {row["ratio"]:5.2f}x'
        for row in table
    ]
    print(f'{nbytes:10} B   ' + '   '.join(cells), flush=True)


if __name__ == '__main__':
    main()
