"""One gradient mean by each communicator, against one raw in-place MPI Allreduce.

    mpiexec -n 2 python benchmarks/exchange.py
    mpiexec -n 4 python benchmarks/exchange.py --repeats 30 --peers all --json exchange.json

The raw Allreduce sums one contiguous buffer of the same bytes and does not even divide by the
number of ranks; `copy` is every rank copying the bytes once. A communicator's name may be followed
by the dtype in which gradients travel: two_dimensional:float16. All must give the right mean
before they are timed. "held" is the memory a rank gives to the communicator. With --gpu the
gradients are on GPUs, one for each rank of a node; the raw Allreduce still is of host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import chainer
import numpy as np
import peers
import timing
from memory import made_and_weighed
from mpi4py import MPI
from parameter_sets import SETS, Shape
from timing import Candidate, Row

import mnx

BASELINE = 'raw Allreduce'


def model_of(shapes: list[Shape], gpu: bool = False) -> chainer.Link:
    """Return a link with parameters of these shapes, and gradients."""
    model = chainer.Link()
    with model.init_scope():
        for i, shape in enumerate(shapes):
            setattr(model, f'p{i:03}', chainer.Parameter(np.zeros(shape, 'f4')))
    if gpu:
        model.to_device(own_gpu())
    for param in model.params():
        param.grad = param.xp.zeros_like(param.array)
    return model


def own_gpu() -> chainer.device.Device:
    """Return this rank's GPU, in use."""
    with mnx.create_communicator('naive') as comm:
        device = chainer.get_device(f'@cupy:{comm.intra_rank}')
    device.use()
    return device


def settled(run: Candidate) -> Candidate:
    """Return `run` with a wait for the GPU at its end."""
    import cupy

    def run_and_wait() -> None:
        run()
        cupy.cuda.runtime.deviceSynchronize()

    return run_and_wait


def fill(model: chainer.Link) -> None:
    """Set gradients that differ between ranks and between parameters; float16 holds them, too."""
    for i, param in enumerate(model.params()):
        param.grad.fill(MPI.COMM_WORLD.rank + i % 7)


def check(name: str, model: chainer.Link) -> None:
    """End the benchmark unless the gradients are the means of what `fill` has set."""
    middle = (MPI.COMM_WORLD.size - 1) / 2
    for i, param in enumerate(model.params()):
        if not param.xp.allclose(param.grad, middle + i % 7, rtol=1e-3):
            raise SystemExit(f'{name} gives a wrong mean of gradient {i}')


def references(model: chainer.Link) -> dict[str, Candidate]:
    """Return what MPI alone takes, and one pass through memory."""
    world = MPI.COMM_WORLD.Dup()
    size = sum(param.size for param in model.params())
    # zeros stay what they are, however often they are summed; written, or they were no memory
    buffer, spare = np.full(size, 0, 'f4'), np.full(size, 0, 'f4')
    return {
        BASELINE: lambda: world.Allreduce(MPI.IN_PLACE, buffer),
        'copy': lambda: np.copyto(spare, buffer),
    }


def communicator(name: str, model: chainer.Link) -> Candidate:
    """Return the exchange by the communicator of this name, as in 'flat' or 'flat:float16'."""
    kind, _, dtype = name.partition(':')
    comm = mnx.create_communicator(kind, allreduce_grad_dtype=dtype or None)
    return lambda: comm.multi_node_mean_grad(model)


def makers(
    model: chainer.Link, names: list[str], others: str
) -> dict[str, Callable[[], Candidate]]:
    """Return what makes each candidate, by name."""
    own = {name: lambda name=name: communicator(name, model) for name in names}
    theirs = {name: lambda make=make: make(model) for name, make in peers.chosen(others).items()}
    return {**own, **theirs}


def tx_counter(interface: str | None) -> Callable[[], float]:
    """Return a counter of the bytes that this rank's node has sent; one rank a node counts."""
    hosts = MPI.COMM_WORLD.allgather(MPI.Get_processor_name())
    if interface is None or hosts.index(hosts[MPI.COMM_WORLD.rank]) != MPI.COMM_WORLD.rank:
        return timing.nothing
    return lambda: sent_bytes(interface)


def sent_bytes(interface: str) -> float:
    """Return the bytes sent by a network interface of this network namespace."""
    for line in Path('/proc/net/dev').read_text().splitlines():
        name, _, counters = line.partition(':')
        if name.strip() == interface:
            return float(counters.split()[8])
    raise SystemExit(f'there is no network interface {interface!r}')


def measure(
    set_name: str, names: list[str], others: str, repeats: int, wire: str | None, gpu: bool = False
) -> list[Row]:
    """Return one row for each candidate. Collective."""
    model = model_of(SETS[set_name](), gpu)
    nbytes = sum(param.array.nbytes for param in model.params())
    found, held = references(model), {}
    found[BASELINE]()  # MPI's own buffers are no candidate's, nor are the libraries of the others
    for name, make in makers(model, names, others).items():
        found[name], held[name] = made_and_weighed(make)
        fill(model)
        found[name]()
        if name != 'gloo views':  # works on buckets of its own, which stand for the gradients
            check(name, model)
        elif held[name] is not None:
            held[name] -= nbytes
    if gpu:
        found = {name: settled(run) for name, run in found.items()}
    turns = timing.take_turns(found, repeats, before=lambda: fill(model), counter=tx_counter(wire))
    rows = timing.summarize(turns, BASELINE)
    for row in rows:
        row.update(set=set_name, ranks=MPI.COMM_WORLD.size, bytes=nbytes)
        row['held'] = held.get(row['candidate'])
        if wire is not None:
            row['wire'] = float(np.median([turn.counted for turn in turns[row['candidate']]]))
    return rows


def show(rows: list[Row]) -> None:
    """Print the rows of one set."""
    first = rows[0]
    print(f'\n{first["set"]}: {first["bytes"] / 1e6:.1f} MB, n = {first["ranks"]}')
    for row in rows:
        held = '' if row['held'] is None else f'{row["held"] / 1e6:8.1f} MB held'
        wire = f'{row["wire"] / 1e6:9.2f} MB sent' if 'wire' in row else ''
        time = f'{row["us"] / 1e3:9.3f} ms  {row["ratio"]:6.2f}x'
        print(f'  {row["candidate"]:24} {time} {held:16} {wire}'.rstrip())


def main() -> None:
    parser = timing.parser(__doc__, repeats=15)
    parser.add_argument('--communicators', default='auto,flat,naive')
    parser.add_argument('--peers', default='', help='chainermn, gloo, or all that are installed')
    parser.add_argument('--sets', default=','.join(SETS))
    parser.add_argument('--wire', metavar='INTERFACE', help='count the bytes that nodes send')
    parser.add_argument('--gpu', action='store_true', help='gradients on GPUs')
    options = parser.parse_args()
    rows: list[Row] = []
    for set_name in options.sets.split(','):
        names = options.communicators.split(',')
        table = measure(set_name, names, options.peers, options.repeats, options.wire, options.gpu)
        rows += table
        if MPI.COMM_WORLD.rank == 0:
            show(table)
    timing.write(options.json, 'exchange', rows)


if __name__ == '__main__':
    main()
