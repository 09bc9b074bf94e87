"""``mnx bench allreduce``: the mean of a gradient by every communicator, beside raw MPI.

The columns and flags are those of NVIDIA's nccl-tests.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import chainer
import numpy as np

from mnx.arrays import Array
from mnx.cli import self_test, speech, tables
from mnx.cli.measuring import Speed, parse_size, seconds_of, sizes
from mnx.communicators import Communicator, create_communicator
from mnx.errors import ArgumentError

DTYPES = {'float': np.float32, 'double': np.float64}
RAW = 'raw MPI'
COLUMNS = (
    *('size (B)', 'count', 'type', 'redop', 'by'),
    *('time (us)', 'algbw (GB/s)', 'busbw (GB/s)', '#wrong', 'x raw'),
)


@dataclass(frozen=True)
class Wanted:
    """The words of the command line."""

    first: str
    last: str
    factor: int | None
    step: str | None
    dtype: str
    repeats: int
    warmup: int


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    nbytes: Sequence[int]
    dtype: str
    repeats: int
    warmup: int


@dataclass(frozen=True)
class Line:
    """One result: a size, by one communicator or by MPI itself."""

    by: str
    redop: str
    dtype: str
    speed: Speed
    wrong: int
    times_raw: float | None


def add_to(app: Any, choose: Callable[[Callable[[], int]], None]) -> None:
    """Add the command to a typer application."""
    import typer

    group = typer.Typer(no_args_is_help=True, help='Measure communication.')
    app.add_typer(group, name='bench')
    group.callback()(_no_options)

    @group.command()
    def allreduce(
        first: Annotated[str, typer.Option('-b', '--minbytes', help='The first size.')] = '1K',
        last: Annotated[str, typer.Option('-e', '--maxbytes', help='The last size.')] = '4M',
        factor: Annotated[
            int | None, typer.Option('-f', '--stepfactor', help='From one size to the next: 8.')
        ] = None,
        step: Annotated[
            str | None, typer.Option('-i', '--stepbytes', help='Instead of a factor: so many more.')
        ] = None,
        repeats: Annotated[int, typer.Option('-n', '--iters', min=1, help='Calls timed.')] = 20,
        warmup: Annotated[int, typer.Option('-w', '--warmup_iters', min=0, help='Before.')] = 5,
        dtype: Annotated[
            str, typer.Option('-d', '--datatype', help=f'One of: {", ".join(DTYPES)}.')
        ] = 'float',
        as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
    ) -> None:
        """The mean of a gradient, by every communicator, beside raw MPI's Allreduce."""
        wanted = Wanted(first, last, factor, step, dtype, repeats, warmup)
        choose(lambda: report(wanted, as_json=as_json))


def _no_options() -> None:
    pass


def report(wanted: Wanted, *, as_json: bool) -> int:
    """Measure and print; return the exit status. Collective."""
    try:
        plan = _plan(wanted)
    except ArgumentError as error:
        speech.complain(f'bench allreduce: {error}')
        return speech.USAGE
    lines = list(measure(plan))
    if as_json:
        speech.print_json([as_dict(line) for line in lines])
    else:
        _print(lines)
    return speech.FAILED if any(line.wrong for line in lines) else speech.OK


def _plan(wanted: Wanted) -> Plan:
    if wanted.dtype not in DTYPES:
        known = ', '.join(DTYPES)
        raise ArgumentError(f'A datatype is one of {known}, but got {wanted.dtype!r}.')
    if wanted.factor is not None and wanted.step is not None:
        raise ArgumentError('Sizes grow by a factor (-f) or by a step (-i), but got both.')
    nbytes = sizes(
        parse_size(wanted.first),
        parse_size(wanted.last),
        8 if wanted.factor is None else wanted.factor,
        np.dtype(DTYPES[wanted.dtype]).itemsize,
        None if wanted.step is None else parse_size(wanted.step),
    )
    return Plan(nbytes, wanted.dtype, wanted.repeats, wanted.warmup)


def _print(lines: Sequence[Line]) -> None:
    right = [name for name in COLUMNS if name not in ('type', 'redop', 'by')]
    tables.print_table(COLUMNS, map(_words, lines), right=right)
    names = list(dict.fromkeys(line.by for line in lines if line.times_raw is not None))
    if len(names) > 1:
        speech.say(f'\nside by side, in times of {RAW}:\n')
        columns = ('size (B)', *names)
        tables.print_table((*columns, 'fastest'), side_by_side(lines), right=columns)


def side_by_side(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """Return for each size the times of all communicators in times of MPI's, and the fastest."""
    by_size: dict[int, dict[str, float]] = {}
    for line in lines:
        if line.times_raw is not None:
            by_size.setdefault(line.speed.nbytes, {})[line.by] = line.times_raw
    return [
        (str(nbytes), *(f'{x:.2f}' for x in times.values()), min(times, key=times.__getitem__))
        for nbytes, times in by_size.items()
    ]


def measure(plan: Plan) -> Iterator[Line]:
    """Measure size by size, all communicators in turn. Collective."""
    with create_communicator('naive') as judge:
        # alone without MPI, all names are the same one
        names = ['local'] if judge.mpi_comm is None else self_test.names(with_nccl=False)
        comms = [create_communicator(name) for name in names]
        for nbytes in plan.nbytes:
            raw = None if judge.mpi_comm is None else _of_raw(judge, plan, nbytes)
            if raw is not None:
                yield raw
            for comm in comms:
                yield _of_communicator(judge, comm, plan, nbytes, raw)
        for comm in comms:
            comm.finalize()


def _of_raw(judge: Communicator, plan: Plan, nbytes: int) -> Line:
    sent = _values(judge.rank, plan, nbytes)
    received = np.empty_like(sent)
    world = judge.mpi_comm.Dup()
    world.Allreduce(sent, received)
    wrong = _count_wrong(judge, received, _total(judge, plan, nbytes))
    speed = _speed(judge, plan, nbytes, lambda: world.Allreduce(sent, received))
    world.Free()
    return Line(RAW, 'sum', plan.dtype, speed, wrong, None)


def _of_communicator(
    judge: Communicator, comm: Communicator, plan: Plan, nbytes: int, raw: Line | None
) -> Line:
    model = chainer.Link()
    with model.init_scope():
        model.p = chainer.Parameter(_values(comm.rank, plan, nbytes))
    model.p.grad = _values(comm.rank, plan, nbytes)
    comm.multi_node_mean_grad(model)
    wrong = _count_wrong(judge, model.p.grad, _total(judge, plan, nbytes) / comm.size)
    speed = _speed(judge, plan, nbytes, lambda: comm.multi_node_mean_grad(model))
    times_raw = None if raw is None else speed.seconds / raw.speed.seconds
    return Line(comm.name, 'avg', plan.dtype, speed, wrong, times_raw)


def _values(rank: int, plan: Plan, nbytes: int) -> Any:
    """Return what a rank has: small whole numbers, whose sums are exact."""
    dtype = np.dtype(DTYPES[plan.dtype])
    return (np.arange(nbytes // dtype.itemsize) % 5 + rank).astype(dtype)


def _total(judge: Communicator, plan: Plan, nbytes: int) -> Any:
    return sum(_values(rank, plan, nbytes).astype(np.float64) for rank in range(judge.size))


def _count_wrong(judge: Communicator, found: Array, expected: Any) -> int:
    """Return how many elements of all ranks are further off than rounding. Collective."""
    precision = 4 * np.finfo(found.dtype).eps
    wrong = np.count_nonzero(~(abs(found - expected) <= precision * abs(expected)))
    return int(judge.allreduce(np.array(wrong, np.int64)))


def _speed(judge: Communicator, plan: Plan, nbytes: int, call: Callable[[], object]) -> Speed:
    own = seconds_of(call, judge.barrier, plan.repeats, plan.warmup)
    return Speed(nbytes, judge.size, float(judge.allreduce(np.array(own), 'mean')))


def as_dict(line: Line) -> dict[str, Any]:
    """Return a line with names for programs."""
    return {
        'size': line.speed.nbytes,
        'count': line.speed.nbytes // np.dtype(DTYPES[line.dtype]).itemsize,
        'type': line.dtype,
        'redop': line.redop,
        'by': line.by,
        'time_us': line.speed.seconds * 1e6,
        'algbw': line.speed.algorithm_bandwidth,
        'busbw': line.speed.bus_bandwidth,
        'wrong': line.wrong,
        'times_raw': line.times_raw,
    }


def _words(line: Line) -> tuple[str, ...]:
    values = as_dict(line)
    return (
        *(str(values[name]) for name in ('size', 'count', 'type', 'redop', 'by')),
        *(f'{values["time_us"]:.1f}', f'{values["algbw"]:.3f}', f'{values["busbw"]:.3f}'),
        str(line.wrong),
        '' if line.times_raw is None else f'{line.times_raw:.2f}',
    )
