"""One whole update of an MLP, its gradients exchanged in four ways, against no exchange at all.

    mpiexec -n 2 python benchmarks/overlap.py
    mpiexec -n 4 python benchmarks/overlap.py --units 500,2000 --layers 8 --json overlap.json

`after` exchanges when backward is done (the multi-node optimizer), `injected` while it runs
(`mnx.inject_allreduce` and a plain optimizer), `injected late` the same buckets when it is done,
`double buffering` while the next update computes. "hidden" is the share of the exchange's time
that is not seen: 1 - (injected - alone) / (injected late - alone). All but `alone` and
`double buffering` must end with the same parameters before they are timed.

MPI moves data when it is called: between the functions of backward on CPUs. With as many ranks as
cores there is no idle core to do it meanwhile, so on one machine little can be gained.
"""

from __future__ import annotations

from collections.abc import Callable

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import timing
from mpi4py import MPI
from timing import Row

import mnx

BASELINE = 'alone'


def model_of(layers: int, units: int) -> chainer.Sequential:
    np.random.seed(0)  # noqa: NPY002 - Chainer draws its first values from it
    return chainer.Sequential(L.Linear(units, units), F.tanh).repeat(layers)


class Updates:
    """A model that is updated over and over by one way of exchanging gradients."""

    def __init__(self, wrap: Callable[..., object], layers: int, units: int, batch: int) -> None:
        rng = np.random.default_rng(MPI.COMM_WORLD.rank)
        self.x = rng.standard_normal((batch, units), np.float32)
        self.model = model_of(layers, units)
        self.optimizer = wrap(self.model)

    def loss(self, x: np.ndarray) -> chainer.Variable:
        return F.sum(self.model(x) ** 2) / x.size

    def __call__(self) -> None:
        self.optimizer.update(self.loss, self.x)

    def parameters(self) -> np.ndarray:
        return np.concatenate([p.array.ravel() for _, p in sorted(self.model.namedparams())])


def ways(comm: mnx.CommunicatorBase, bucket: int) -> dict[str, Callable[..., object]]:
    def sgd() -> chainer.Optimizer:
        return chainer.optimizers.SGD(0.01)

    def injected(model: chainer.Link, overlaps: bool) -> object:
        mnx.inject_allreduce(model, comm, bucket_bytes=bucket).exchange.overlaps = overlaps
        return sgd().setup(model)

    def wrapped(model: chainer.Link, **kwds: bool) -> object:
        return mnx.create_multi_node_optimizer(sgd(), comm, **kwds).setup(model)

    return {
        BASELINE: lambda model: sgd().setup(model),
        'after': wrapped,
        'injected': lambda model: injected(model, True),
        'injected late': lambda model: injected(model, False),
        'double buffering': lambda model: wrapped(model, double_buffering=True),
    }


def check(found: dict[str, Updates]) -> None:
    """End the benchmark unless all that should train alike do."""
    expected = found['after'].parameters()
    for name in ('injected', 'injected late'):
        if not np.allclose(found[name].parameters(), expected, rtol=1e-3, atol=1e-5):
            raise SystemExit(f'{name} ends with other parameters than the plain exchange')


def measure(
    comm: mnx.CommunicatorBase, layers: int, units: int, batch: int, bucket: int, repeats: int
) -> list[Row]:
    """Return one row for each way. Collective."""
    found = {name: Updates(wrap, layers, units, batch) for name, wrap in ways(comm, bucket).items()}
    for _ in range(3):
        for updates in found.values():
            updates()
    check(found)
    rows = timing.summarize(timing.take_turns(found, repeats), BASELINE)
    nbytes = found[BASELINE].parameters().nbytes
    for row in rows:
        row.update(layers=layers, units=units, batch=batch, bucket=bucket, bytes=nbytes)
        row.update(ranks=comm.size, communicator=comm.name)
    return rows


def show(rows: list[Row]) -> None:
    first, us = rows[0], {row['candidate']: row['us'] for row in rows}
    megabytes, bucket = first['bytes'] / 1e6, first['bucket'] / 1e6
    print(f'\n{first["layers"]} x {first["units"]} units: {megabytes:.1f} MB, n = {first["ranks"]}')
    for row in rows:
        print(f'  {row["candidate"]:18} {row["us"] / 1e3:9.3f} ms  {row["ratio"]:6.2f}x')
    late = us['injected late'] - us[BASELINE]
    if late > 0:
        hidden = 1 - (us['injected'] - us[BASELINE]) / late
        print(f'  hidden: {hidden:.0%}, in buckets of {bucket:.1f} MB')


def main() -> None:
    parser = timing.parser(__doc__, repeats=15)
    parser.add_argument('--communicator', default='auto')
    parser.add_argument('--layers', type=int, default=8)
    parser.add_argument('--units', default='250,1000')
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--bucket', default='4Mi', help='bytes of a bucket')
    options = parser.parse_args()
    comm = mnx.create_communicator(options.communicator)
    (bucket,) = timing.numbers(options.bucket)
    rows: list[Row] = []
    for units in timing.numbers(options.units):
        table = measure(comm, options.layers, units, options.batch, bucket, options.repeats)
        rows += table
        if comm.rank == 0:
            show(table)
    timing.write(options.json, 'overlap', rows)


if __name__ == '__main__':
    main()
