"""Make docs/benchmarks.md and its figures of the results in benchmarks/results.

    python benchmarks/plot.py

Needs matplotlib (extra `plot`), no MPI. Every number of that page comes from the files given.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use('svg')

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
Result = dict[str, Any]
Table = list[list[str]]

SAME_EVERY_TIME = {'svg.hashsalt': 'mnx', 'svg.fonttype': 'none', 'font.size': 9}

INTRODUCTION = """\
# Benchmarks

What mnx takes, and what MPI alone and others take for the same, in the same processes and in
turns. A candidate's time is that of its slowest rank, a ratio is formed within one repeat, and
shown are the medians of all repeats. `benchmarks/README.md` tells what exactly is compared with
what; `make results` measures all of it and writes this page.
"""

BUSY = """
**The machine was busy with other work: these are times of its scheduler, not of the candidates.**
Measure again when it is quiet.
"""

EXCHANGE = """\
The mean of all gradients of a model (`comm.multi_node_mean_grad`). In brackets: the ratio to one
raw in-place Allreduce of the same bytes, which does not even divide.

{}
Megabytes of memory that a rank gives to each, beside the gradients themselves:

{}"""

CLUSTER_EXCHANGE = """\
The same across the nodes of an emulated cluster (`benchmarks/cluster.sh`).

{}
Time, as a multiple of what the cables need for the least bytes that must be sent: with S bytes of
float32 gradients, each of k nodes sends 2 (k-1)/k S.

{}
Bytes that the nodes sent, as a multiple of the same:

{}"""

POINT_TO_POINT = """\
`comm.send` and `comm.recv` against mpi4py's `Send` and `Recv` into an array that is there already,
and against its pickling `send` and `recv`: half a round trip.

{}"""

COLLECTIVES = """\
Every collective of arrays against the raw MPI call on arrays that are there already. `unchecked`:
as with `MNX_CHECK=0`.

{}
Without an array: the barrier, and the meeting in which the ranks compare what they call, against
an all-reduce of its 40 bytes.

{}"""


def cells(rows: Iterable[Row], across: str, down: tuple[str, ...]) -> dict[Any, dict[str, Row]]:
    """Return rows by what they have in common (`down`), then by what differs (`across`)."""
    found: dict[Any, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in down), {})[row[across]] = row
    return found


def columns(table: dict[Any, dict[str, Row]]) -> list[str]:
    """Return the names across, in the order in which they come."""
    return list(dict.fromkeys(name for line in table.values() for name in line))


def markdown(head: list[str], body: Table, words: int) -> str:
    """Return a table; the first `words` columns are aligned to the left, numbers to the right."""
    rule = ['---'] * words + ['---:'] * (len(head) - words)
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [head, rule, *body]) + '\n'


def time_of(us: float) -> str:
    """Return a time with three digits.

    >>> time_of(1234.5), time_of(0.4567), time_of(1234567)
    ('1.23 ms', '0.457 us', '1.23 s')
    """
    for unit, size in (('s', 1e6), ('ms', 1e3)):
        if us >= size:
            return f'{_digits(us / size)} {unit}'
    return f'{_digits(us)} us'


def _digits(value: float) -> str:
    return f'{value:.{max(0, 2 - math.floor(math.log10(value)))}f}' if value > 0 else '0'


def bytes_of(nbytes: float) -> str:
    """Return a length in binary units.

    >>> bytes_of(4), bytes_of(65536), bytes_of(16 * 2**20)
    ('4 B', '64 KiB', '16 MiB')
    """
    for unit, size in (('MiB', 2**20), ('KiB', 2**10)):
        if nbytes >= size:
            return f'{nbytes / size:g} {unit}'
    return f'{nbytes:g} B'


def time_and_ratio(row: Row | None) -> str:
    if row is None:
        return ''
    return (
        time_of(row['us']) if row['ratio'] == 1 else f'{time_of(row["us"])} ({row["ratio"]:.2f}x)'
    )


def ratio(row: Row | None) -> str:
    return '' if row is None else f'{row["ratio"]:.2f}x'


def pivot(
    rows: list[Row], head: list[str], down: tuple[str, ...], show: Callable[[Row | None], str]
) -> str:
    """Return a table with one line for each combination of `down`, a column for each candidate."""
    table = cells(rows, 'candidate', down)
    names = columns(table)
    body = [
        [*(bytes_of(v) if k == 'bytes' else str(v) for k, v in zip(down, key, strict=True))]
        + [show(line.get(name)) for name in names]
        for key, line in table.items()
    ]
    return markdown([*head, *names], body, 1)


# --- one section a benchmark ---------------------------------------------------------------------


def exchange(rows: list[Row]) -> str:
    """Return the tables of one gradient mean: time, and memory."""
    times = pivot(rows, ['set', 'ranks'], ('set', 'ranks'), time_and_ratio)
    held = [row for row in rows if row['held'] is not None]
    memory = pivot(held, ['set', 'ranks'], ('set', 'ranks'), _held)
    return EXCHANGE.format(times, memory)


def _held(row: Row | None) -> str:
    return '' if row is None else f'{max(row["held"], 0) / 1e6:.1f}'


def draw_exchange(rows: list[Row]) -> plt.Figure:
    sets = list(dict.fromkeys(row['set'] for row in rows))
    figure, axes = plt.subplots(1, len(sets), figsize=(9, 3), squeeze=False, layout='constrained')
    for axis, name in zip(axes[0], sets, strict=True):
        own = [row for row in rows if row['set'] == name]
        bars(axis, own, ('ranks',), 'ratio')
        if max(row['ratio'] for row in own) > 10:
            axis.set_yscale('log')
        axis.set_title(name)
        axis.set_xlabel('ranks')
    axes[0][0].set_ylabel('time / raw Allreduce')
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    return figure


def cluster_exchange(rows: list[Row]) -> str:
    """Return the tables of gradient means across nodes: times, and both multiples of the least."""
    down = ('link', 'shape', 'set')
    head = ['link', 'nodes x ranks', 'set']
    times = pivot(rows, head, down, time_and_ratio)
    waits = pivot(rows, head, down, lambda row: '' if row is None else f'{row["us_of_least"]:.2f}')
    sent = pivot(rows, head, down, lambda row: '' if row is None else f'{row["wire_of_least"]:.2f}')
    return CLUSTER_EXCHANGE.format(times, waits, sent)


def draw_cluster_exchange(rows: list[Row]) -> plt.Figure:
    links = list(dict.fromkeys(row['link'] for row in rows))
    figure, axes = plt.subplots(1, len(links), figsize=(9, 3), squeeze=False, layout='constrained')
    for axis, link in zip(axes[0], links, strict=True):
        bars(axis, [row for row in rows if row['link'] == link], ('shape', 'set'), 'us_of_least')
        axis.set_title(link)
    axes[0][0].set_ylabel('time / least time of the wire')
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
    return figure


def point_to_point(rows: list[Row]) -> str:
    """Return the table of messages from one rank to another, one way."""
    return POINT_TO_POINT.format(pivot(rows, ['one way'], ('bytes',), time_and_ratio))


def draw_point_to_point(rows: list[Row]) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout='constrained')
    lines(left, rows, lambda row: row['us'])
    left.set_ylabel('us, one way')
    left.set_yscale('log')
    lines(right, rows, lambda row: row['bytes'] / row['us'] / 1e3)
    right.set_ylabel('GB/s')
    figure.legend(*left.get_legend_handles_labels(), loc='outside lower center', ncols=3)
    return figure


def collectives(rows: list[Row]) -> str:
    """Return the tables of all collectives: times and ratios by call and size."""
    head, down = ['call', 'bytes', 'ranks'], ('call', 'bytes', 'ranks')
    empty = [row for row in rows if row['bytes'] == 0]
    full = [row for row in rows if row['bytes'] > 0]
    tables = [pivot(part, head, down, time_and_ratio) for part in (full, empty)]
    return COLLECTIVES.format(*tables)


def draw_collectives(rows: list[Row]) -> plt.Figure:
    full = [row for row in rows if row['bytes'] > 0 and row['candidate'] == 'mnx']
    calls = list(dict.fromkeys(row['call'] for row in full))
    high = math.ceil(len(calls) / 4)
    figure, axes = plt.subplots(
        high, 4, figsize=(9, 2.2 * high), squeeze=False, layout='constrained', sharex=True
    )
    for axis, call in zip(axes.flat, calls, strict=False):
        own = [{**row, 'candidate': f'n = {row["ranks"]}'} for row in full if row['call'] == call]
        lines(axis, own, lambda row: row['ratio'])
        axis.axhline(1, color='gray', linewidth=0.8)
        axis.set_title(call)
    for axis in list(axes.flat)[len(calls) :]:
        axis.axis('off')
    axes[0][0].set_ylabel('time / raw MPI')
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
    return figure


def bars(axis: Axes, rows: list[Row], down: tuple[str, ...], value: str) -> None:
    """Draw groups of bars, one for each candidate; a line at 1."""
    table = cells(rows, 'candidate', down)
    names = columns(table)
    for i, name in enumerate(names):
        places = [k + (i + 0.5) / len(names) * 0.8 - 0.4 for k in range(len(table))]
        heights = [line[name][value] if name in line else 0 for line in table.values()]
        axis.bar(places, heights, 0.8 / len(names), label=name)
    axis.set_xticks(range(len(table)), ['\n'.join(map(str, key)) for key in table])
    axis.axhline(1, color='gray', linewidth=0.8)


def lines(axis: Axes, rows: list[Row], value: Callable[[Row], float]) -> None:
    """Draw one line for each candidate over the bytes."""
    for name in dict.fromkeys(row['candidate'] for row in rows):
        own = [row for row in rows if row['candidate'] == name]
        axis.plot([row['bytes'] for row in own], [value(row) for row in own], '.-', label=name)
    axis.set_xscale('log', base=2)
    axis.set_xlabel('bytes')


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], str], Callable[[list[Row]], plt.Figure]]] = {
    'exchange': ('One gradient exchange', exchange, draw_exchange),
    'cluster_exchange': ('Across nodes', cluster_exchange, draw_cluster_exchange),
    'point_to_point': ('Messages', point_to_point, draw_point_to_point),
    'collectives': ('Collectives', collectives, draw_collectives),
}


# --- the page ------------------------------------------------------------------------------------


def machines_of(results: list[Result]) -> list[dict[str, str]]:
    """Return the machines that differ in more than their load."""
    found: list[dict[str, str]] = []
    for result in results:
        machine = {k: v for k, v in result['machine'].items() if k != 'load'}
        if machine not in found:
            found.append(machine)
    return found


def section(name: str, results: list[Result], figures: Path) -> str:
    """Return one section of the page, and save its figure."""
    title, table, draw = SECTIONS[name]
    machines = machines_of(results)
    parts = [f'## {title}\n']
    for i, machine in enumerate(machines):
        own = [r for r in results if {**r['machine'], 'load': ''} == {**machine, 'load': ''}]
        rows = [row for result in own for row in result['rows']]
        file = figures / f'{name}{"" if i == 0 else f"_{i + 1}"}.svg'
        figure = draw(rows)
        figure.savefig(file, metadata={'Date': None})
        plt.close(figure)
        parts += [table(rows), f'![{title}]({figures.name}/{file.name})\n', commands(own)]
    return '\n'.join(parts)


def commands(results: list[Result]) -> str:
    """Return what was run, and how busy the machine was then."""
    shown = '\n'.join(result['command'] for result in results)
    loads = [result['machine'].get('load', 'unknown') for result in results]
    libraries = ('Python', 'NumPy', 'mpi4py', 'MPI', 'settings')
    machine = results[0]['machine']
    versions = ', '.join(
        machine[key] if key in ('MPI', 'settings') else f'{key} {machine[key]}'
        for key in libraries
        if key in machine
    )
    return (
        f'```\n{shown}\n```\n\n{versions}. Load of the machine before each: {", ".join(loads)}.\n'
        + (BUSY if any(is_busy(result['machine']) for result in results) else '')
    )


def is_busy(machine: dict[str, str]) -> bool:
    """Tell whether others had at least as much to do on the machine as it has cores.

    >>> is_busy({'cores': '2', 'load': '2.5'}), is_busy({'cores': '2', 'load': '0.3'})
    (True, False)
    """
    return float(machine.get('load', 0)) >= float(machine['cores'])


def hardware(results: list[Result]) -> str:
    """Return what the machine is, in one table for all results."""
    keys = ('processor', 'cores', 'cache', 'memory', 'system')
    values = {key: dict.fromkeys(r['machine'].get(key, '') for r in results) for key in keys}
    body = [[key, ', '.join(found)] for key, found in values.items() if any(found)]
    return '## The machine\n\n' + markdown(['', ''], body, 2)


def page(results: list[Result], figures: Path) -> str:
    """Return the whole page; figures go into a folder beside it."""
    figures.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION]
    for name in SECTIONS:
        own = [result for result in results if result['benchmark'] == name]
        if own:
            parts.append(section(name, own, figures))
    return '\n'.join([*parts, hardware(results)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('files', nargs='*', type=Path, help='default: benchmarks/results/*.json')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='where the page goes')
    options = parser.parse_args()
    files = options.files or sorted((ROOT / 'benchmarks' / 'results').glob('*.json'))
    if not files:
        raise SystemExit('no results: run `make results`, or a benchmark with --json')
    results = [json.loads(file.read_text()) for file in files]
    with mpl.rc_context(SAME_EVERY_TIME):
        text = page(results, options.out / 'benchmarks')
    (options.out / 'benchmarks.md').write_text(text)


if __name__ == '__main__':
    main()
