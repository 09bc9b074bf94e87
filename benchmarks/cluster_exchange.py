"""Gradient means across the nodes of an emulated cluster, against MPI and against the wire itself.

    sudo python benchmarks/cluster_exchange.py
    sudo python benchmarks/cluster_exchange.py --shapes 4x2 --links 1gbit/0.1ms --sets mlp,resnet50

For each link and each shape (nodes x ranks on each) it brings up a cluster (`cluster.sh`), runs
`exchange.py` on it, and takes it down, also after a failure. "least" is what no algorithm can
beat: with S bytes of gradients each of k nodes must send 2 (k-1)/k S, which takes its time on the
node's cable. Compressed gradients are measured against the same float32 bytes, so 0.5 is what
16 bits could reach.

References: Patarasuk, Yuan 2009 (Bandwidth optimal all-reduce algorithms), theorem 1.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import timing
from timing import Row

HERE = Path(__file__).resolve().parent
CLUSTER = str(HERE / 'cluster.sh')
CANDIDATES = 'flat,hierarchical,two_dimensional,auto,two_dimensional:float16'


@dataclass(frozen=True)
class Shape:
    """So many nodes with so many ranks each, as in '2x4'."""

    nodes: int
    ranks_each: int

    @classmethod
    def of(cls, text: str) -> Shape:
        nodes, _, ranks = text.partition('x')
        return cls(int(nodes), int(ranks))

    def __str__(self) -> str:
        return f'{self.nodes}x{self.ranks_each}'


@dataclass(frozen=True)
class Link:
    """The cable of each node: bits a second, and a delay one way, as in '1gbit/0.1ms'."""

    rate: str
    delay: str

    @classmethod
    def of(cls, text: str) -> Link:
        rate, _, delay = text.partition('/')
        return cls(rate, delay or '0')

    @property
    def bits_per_second(self) -> float:
        found = re.fullmatch(r'([\d.]+)([kmg])bit', self.rate)
        if found is None:
            raise SystemExit(f'--links: a rate is like 100mbit or 1gbit, not {self.rate!r}')
        return float(found[1]) * {'k': 1e3, 'm': 1e6, 'g': 1e9}[found[2]]

    def __str__(self) -> str:
        return self.rate if self.delay == '0' else f'{self.rate}/{self.delay}'


def least_bytes(shape: Shape, nbytes: int) -> float:
    """Return the bytes that all nodes together must send to sum `nbytes` of each.

    >>> least_bytes(Shape(4, 2), 100)
    600.0
    """
    return shape.nodes * 2 * (shape.nodes - 1) / shape.nodes * nbytes


def least_us(shape: Shape, link: Link, nbytes: int) -> float:
    """Return the microseconds in which the cables can carry that, all at once.

    >>> least_us(Shape(2, 1), Link('100mbit', '0'), 12_500_000)
    1000000.0
    """
    return least_bytes(shape, nbytes) / shape.nodes * 8 / link.bits_per_second * 1e6


@contextmanager
def cluster(shape: Shape, link: Link) -> Iterator[dict[str, str]]:
    """Yield the environment to call `cluster.sh` in, while a cluster of this shape is up."""
    environment = {**os.environ, 'MNX_CLUSTER': f'b{os.getpid()}'}
    wires = ['--rate', link.rate, '--delay', link.delay]
    try:
        subprocess.run([CLUSTER, 'up', str(shape.nodes), *wires], env=environment, check=True)
        yield environment
    finally:
        subprocess.run([CLUSTER, 'down'], env=environment, check=True)


def measure(shape: Shape, link: Link, options: list[str], timeout: float) -> list[Row]:
    """Run `exchange.py` on a cluster of its own; return its rows, and what the wire could do."""
    with tempfile.TemporaryDirectory() as folder, cluster(shape, link) as environment:
        found = Path(folder) / 'rows.json'
        place = ['-n', str(shape.nodes * shape.ranks_each), '--ppn', str(shape.ranks_each)]
        script = [sys.executable, str(HERE / 'exchange.py'), '--wire', 'eth0', *options]
        run = [CLUSTER, 'run', *place, '--timeout', str(timeout), '--', *script]
        subprocess.run([*run, '--json', str(found)], env=environment, check=True)
        rows: list[Row] = json.loads(found.read_text())['rows']
    return [with_bounds(row, shape, link) for row in rows if row['candidate'] != 'copy']


def with_bounds(row: Row, shape: Shape, link: Link) -> Row:
    """Return the row with its time and its bytes as multiples of the least possible."""
    return {
        **row,
        'shape': str(shape),
        'link': str(link),
        'us_of_least': row['us'] / least_us(shape, link, row['bytes']),
        'wire_of_least': row['wire'] / least_bytes(shape, row['bytes']),
    }


def show(rows: list[Row]) -> None:
    """Print the rows of one cluster."""
    for row in rows:
        name = f'{row["set"]:9} {row["candidate"]:24}'
        time = f'{row["us"] / 1e3:10.2f} ms {row["ratio"]:6.2f}x'
        least = f'time {row["us_of_least"]:5.2f}, bytes {row["wire_of_least"]:5.2f} of the least'
        print(f'  {name} {time}   {least}', flush=True)


def main() -> None:
    parser = timing.parser(__doc__, repeats=7)
    parser.add_argument('--shapes', default='2x2,2x4,4x2')
    parser.add_argument('--links', default='1gbit/0.1ms,100mbit')
    parser.add_argument('--communicators', default=CANDIDATES)
    parser.add_argument('--sets', default='mlp')
    parser.add_argument('--timeout', type=float, default=900, help='seconds for one cluster')
    options = parser.parse_args()
    if not hasattr(os, 'geteuid') or os.geteuid() != 0:
        raise SystemExit(
            'cluster_exchange.py needs root, to make network namespaces: call it by sudo'
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is taken down
    passed = ['--repeats', str(options.repeats), '--sets', options.sets]
    passed += ['--communicators', options.communicators]
    rows: list[Row] = []
    for link in map(Link.of, options.links.split(',')):
        for shape in map(Shape.of, options.shapes.split(',')):
            table = measure(shape, link, passed, options.timeout)
            show(table)
            rows += table
            timing.write(options.json, 'cluster_exchange', rows)  # each time: they take long


if __name__ == '__main__':
    main()
