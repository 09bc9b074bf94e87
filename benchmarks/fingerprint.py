"""What it costs that every collective compares what the ranks call: MNX_CHECK=1 against 0.

    mpiexec -n 4 python benchmarks/fingerprint.py
    mpiexec -n 2 python benchmarks/fingerprint.py --repeats 100 --json fingerprint.json

The step is that of examples/mnist/train_mnist.py: a forward and a backward pass of its perceptron
(784-1000-1000-10), the mean of its gradients, an update by Adam. Two models take turns, step by
step, one with a communicator that compares and one whose does not, so that a noisy moment hits
both. "allreduce" is a sum of one number, of which the comparison is the larger part.
"""

from __future__ import annotations

import os
import sys

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import timing
from mpi4py import MPI
from timing import Candidate, Row

import mnx

MODES = {'unchecked': '0', 'checked': '1'}  # the first is the baseline


def communicator(check: str) -> mnx.communicators.Communicator:
    """Return a communicator made while MNX_CHECK is `check`."""
    os.environ['MNX_CHECK'] = check
    return mnx.create_communicator()


def step_of(comm: mnx.communicators.Communicator, units: int, batch: int) -> Candidate:
    """Return one step of training on random pictures."""
    rng = np.random.default_rng(comm.rank)
    x, t = rng.random((batch, 784), 'f4'), rng.integers(0, 10, batch).astype('i4')
    layers = L.Linear(784, units), F.relu, L.Linear(units, units), F.relu, L.Linear(units, 10)
    model = L.Classifier(chainer.Sequential(*layers))
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm).setup(model)
    return lambda: optimizer.update(model, x, t)


def sum_of(comm: mnx.communicators.Communicator) -> Candidate:
    """Return a sum of one number."""
    x = np.ones(1)
    return lambda: comm.allreduce(x)


def main() -> None:
    options = timing.parser(__doc__, repeats=50)
    options.add_argument('--units', type=int, default=1000)
    options.add_argument('--batch', type=int, default=100, help='on each rank')
    given = options.parse_args()
    comms = {name: communicator(check) for name, check in MODES.items()}
    cases = {
        'step': ({n: step_of(c, given.units, given.batch) for n, c in comms.items()}, 1),
        'allreduce': ({n: sum_of(c) for n, c in comms.items()}, 50),
    }
    rows: list[Row] = []
    for name, (candidates, calls) in cases.items():
        turns = timing.take_turns(candidates, given.repeats, calls=calls)
        rows += [{'call': name, **row} for row in timing.summarize(turns, 'unchecked')]
    if MPI.COMM_WORLD.rank == 0:
        show(rows)
    timing.write(given.json, 'fingerprint', rows)


def show(rows: list[Row]) -> None:
    """Print the table."""
    write = sys.stdout.write
    write(f'{"call":10} {"candidate":10} {"us":>10} {"ratio":>7}  quartiles\n')
    for row in rows:
        low, high = row['quartiles']
        write(
            f'{row["call"]:10} {row["candidate"]:10} {row["us"]:10.1f} {row["ratio"]:7.4f}  '
            f'{low:.4f} to {high:.4f}\n'
        )


if __name__ == '__main__':
    main()
