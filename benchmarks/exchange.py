"""One gradient mean by each communicator, against one raw in-place MPI Allreduce.

    mpiexec -n 2 python benchmarks/exchange.py
    mpiexec -n 4 python benchmarks/exchange.py --repeats 30 --json exchange.json

Each repeat lets all candidates take a turn, so that a noisy moment hits all of them; a candidate's
time is that of its slowest rank, its ratio that to the raw Allreduce of the same repeat. Printed
are the medians. The raw Allreduce sums one contiguous buffer of the same bytes and does not even
divide by the number of ranks; ``copy`` is every rank copying the bytes once. With ``--gpu`` the
gradients are on GPUs, one for each rank of a node; the raw Allreduce still is of host memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import chainer
import numpy as np
from mpi4py import MPI
from parameter_sets import SETS, Shape

import mnx

Candidate = Callable[[], object]


def model_of(shapes: list[Shape], device: chainer.device.Device) -> chainer.Link:
    """Return a link with parameters of these shapes and random gradients, on the device."""
    model = chainer.Link()
    rng = np.random.default_rng(MPI.COMM_WORLD.rank)
    with model.init_scope():
        for i, shape in enumerate(shapes):
            setattr(model, f'p{i:03}', chainer.Parameter(np.zeros(shape, 'f4')))
    model.to_device(device)
    for param in model.params():
        param.grad = device.send(rng.standard_normal(param.shape, dtype='f4'))
    return model


def device_of(gpu: bool) -> chainer.device.Device:
    """Return this rank's device, in use."""
    with mnx.create_communicator('naive') as comm:
        device = chainer.get_device(f'@cupy:{comm.intra_rank}' if gpu else '@numpy')
    device.use()
    return device


def candidates(model: chainer.Link, names: list[str]) -> dict[str, Candidate]:
    """Return what is timed, by name; all work on buffers of their own or on the gradients."""
    world = MPI.COMM_WORLD.Dup()
    size = sum(param.size for param in model.params())
    buffer, spare = np.ones(size, 'f4'), np.ones(size, 'f4')
    found: dict[str, Candidate] = {
        'raw Allreduce': lambda: world.Allreduce(MPI.IN_PLACE, buffer),
        'copy': lambda: np.copyto(spare, buffer),
    }
    for name in names:
        comm = mnx.create_communicator(name)
        found[name] = lambda comm=comm: comm.multi_node_mean_grad(model)
    return found


def measure(
    found: dict[str, Candidate], repeats: int, reset: Candidate, settle: Candidate
) -> dict[str, list[float]]:
    """Return the seconds of the slowest rank, for each candidate and repeat, after a warm-up."""
    world = MPI.COMM_WORLD
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for repeat in range(repeats + 2):
        for name, run in found.items():
            reset()
            settle()
            world.Barrier()
            start = time.perf_counter()
            run()
            settle()
            slowest = world.allreduce(time.perf_counter() - start, MPI.MAX)
            if repeat >= 2:
                seconds[name].append(slowest)
    return seconds


def summarize(seconds: dict[str, list[float]]) -> list[dict[str, object]]:
    """Return one row a candidate: median milliseconds, and median ratio to the raw Allreduce."""
    raw = seconds['raw Allreduce']
    return [
        {
            'candidate': name,
            'ms': statistics.median(times) * 1e3,
            'ratio': statistics.median(t / r for t, r in zip(times, raw, strict=True)),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--communicators', default='auto,flat,naive')
    parser.add_argument('--sets', default=','.join(SETS))
    parser.add_argument('--gpu', action='store_true', help='gradients on GPUs, by CuPy')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--json', metavar='FILE', help='write the rows to this file, too')
    options = parser.parse_args()
    world, rows = MPI.COMM_WORLD, []
    device = device_of(options.gpu)

    def settle() -> None:  # what was put into a GPU's queue counts when it has ended
        if options.gpu:
            device.xp.cuda.get_current_stream().synchronize()

    for set_name in options.sets.split(','):
        model = model_of(SETS[set_name](), device)
        found = candidates(model, options.communicators.split(','))

        def reset(model: chainer.Link = model) -> None:
            for param in model.params():
                param.grad.fill(world.rank)  # or the means would drift to infinity

        table = summarize(measure(found, options.repeats, reset, settle))
        rows += [{'set': set_name, 'ranks': world.size, **row} for row in table]
        if world.rank == 0:
            total = sum(p.size for p in model.params()) * 4 / 1e6
            count = len(list(model.params()))
            print(f'\n{set_name}: {count} arrays, {total:.1f} MB, n = {world.size}')
            for row in table:
                print(f'  {row["candidate"]:14} {row["ms"]:9.3f} ms  {row["ratio"]:6.2f}x')
    if world.rank == 0 and options.json:
        with open(options.json, 'w') as file:
            json.dump(rows, file, indent=1)


if __name__ == '__main__':
    main()
