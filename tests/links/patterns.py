"""Models over several ranks, each beside what it computes in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

WIDTH = 3

Variable = Any
Links = dict[str, chainer.Link]
Row = tuple[str, Any, Any]  # name of a link, rank_in, rank_out
Inputs = list[tuple[Variable, ...]]  # of each rank
Outputs = dict[int, tuple[Variable, ...]]  # of the ranks that have some


class Join(chainer.Chain):
    """Mixes any number of arguments, variables or tuples of such, each in its own way."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        with self.init_scope():
            self.linear = L.Linear(WIDTH, width)

    def forward(self, *xs: Any) -> Variable:
        parts = [v for x in xs for v in (x if isinstance(x, tuple) else (x,))]
        return F.tanh(self.linear(sum(F.sin((k + 1) * v) for k, v in enumerate(parts))))


class Pair(Join):
    """The same, cut in two."""

    def __init__(self) -> None:
        super().__init__(2 * WIDTH)

    def forward(self, *xs: Any) -> tuple[Variable, Variable]:
        y = super().forward(*xs)
        return y[:, :WIDTH], y[:, WIDTH:]


class First(Join):
    """Looks at its first argument only."""

    def forward(self, *xs: Any) -> Variable:
        return super().forward(xs[0])


def make(kind: str, seed: int) -> chainer.Link:
    """Return a link in float64 with parameters that depend on the seed only."""
    link: chainer.Link = {'pair': Pair, 'first': First}.get(kind[: kind.find('_')], Join)()
    rng = np.random.default_rng(seed)
    for name, param in sorted(link.namedparams()):
        scale = 0.5 if name.endswith('W') else 0.1
        param.array = rng.normal(size=param.shape) * scale
        param.cleargrad()
    return link


@dataclass(frozen=True)
class Pattern:
    """`rows(n)` is the table of each rank; `serial` is the same model in one process."""

    name: str
    rows: Callable[[int], list[list[Row]]]
    serial: Callable[[Links, Inputs], Outputs]

    def links(self, n: int) -> Links:
        names = sorted({name for rows in self.rows(n) for name, _, _ in rows})
        return {name: make(name, seed) for seed, name in enumerate(names)}


def idle(n: int, *rows: list[Row]) -> list[list[Row]]:
    return [*rows, *[[] for _ in range(n - len(rows))]]


def chain(n: int) -> list[list[Row]]:
    return [[(f'f{r}', r - 1 if r else None, r + 1 if r < n - 1 else None)] for r in range(n)]


def serial_chain(f: Links, x: Inputs) -> Outputs:
    y: Any = x[0]
    for r in range(len(x)):
        y = (f[f'f{r}'](*y),)
    return {len(x) - 1: y}


def cycle(n: int) -> list[list[Row]]:
    middle = [[(f'f{r}', r - 1, (r + 1) % n)] for r in range(1, n)]
    return [[('f0', None, 1), ('last', n - 1, None)], *middle]


def serial_cycle(f: Links, x: Inputs) -> Outputs:
    (y,) = serial_chain(f, x)[len(x) - 1]
    return {0: (f['last'](y),)}


def branch(n: int) -> list[list[Row]]:
    """Out to all ranks, this one among them, and back."""
    everyone = list(range(n))
    rows = [[(f'f{r}', 0, 0)] for r in range(1, n)]
    return [[('root', None, everyone), ('join', everyone, None)], *rows]


def serial_branch(f: Links, x: Inputs) -> Outputs:
    y = f['root'](*x[0])
    return {0: (f['join'](y, *(f[f'f{r}'](y) for r in range(1, len(x)))),)}


def join(n: int) -> list[list[Row]]:
    rows: list[list[Row]] = [[(f'f{r}', None, 0)] for r in range(1, n)]
    return [[('join', np.arange(n)[:0:-1], None)], *rows]


def serial_join(f: Links, x: Inputs) -> Outputs:
    return {0: (f['join'](*(f[f'f{r}'](*x[r]) for r in range(len(x) - 1, 0, -1))),)}


def serial_crossing(f: Links, x: Inputs) -> Outputs:
    return {0: (f['b'](f['c'](*x[1])),), 1: (f['d'](f['a'](*x[0])),)}


def serial_twist(f: Links, x: Inputs) -> Outputs:
    return {0: (f['c'](f['e'](f['b'](f['d'](f['a'](*x[0]))))),)}


def serial_tuples(f: Links, x: Inputs) -> Outputs:
    y = f['pair_a'](*x[0])
    return {0: f['pair_c'](y, f['pair_b'](y))}


def serial_twice(f: Links, x: Inputs) -> Outputs:
    y = f['a'](*x[0])
    return {0: (f['c'](f['b'](y, y)),)}


def serial_several(f: Links, x: Inputs) -> Outputs:
    y = f['a'](*x[0])
    return {0: (f['b'](*x[0]), f['d'](f['c'](y, y))), 1: (f['e'](*x[1]),)}


def serial_unused(f: Links, x: Inputs) -> Outputs:
    f['c'](*x[1])
    return {0: (f['first_b'](f['a'](*x[0])),)}


def serial_visits(f: Links, x: Inputs) -> Outputs:
    return {0: (f['a'](f['a'](f['b'](f['a'](*x[0])))),)}


PATTERNS: Sequence[Pattern] = (
    Pattern('chain', chain, serial_chain),
    Pattern('cycle', cycle, serial_cycle),
    Pattern('branch', branch, serial_branch),
    Pattern('join', join, serial_join),
    Pattern(
        'crossing',
        lambda n: idle(n, [('a', None, 1), ('b', 1, None)], [('d', 0, None), ('c', None, 0)]),
        serial_crossing,
    ),
    Pattern(
        'twist',
        lambda n: idle(
            n, [('a', None, 1), ('b', 1, 1), ('c', 1, None)], [('d', 0, 0), ('e', 0, 0)]
        ),
        serial_twist,
    ),
    Pattern(
        'tuples',
        lambda n: idle(n, [('pair_a', None, [0, 1]), ('pair_c', [0, 1], None)], [('pair_b', 0, 0)]),
        serial_tuples,
    ),
    Pattern(
        'two messages to one rank',
        lambda n: idle(n, [('a', None, [1, 1]), ('c', 1, None)], [('b', (0, np.int64(0)), 0)]),
        serial_twice,
    ),
    Pattern(
        'several inputs and outputs',
        lambda n: idle(
            n,
            [('a', None, [np.int32(1), 1]), ('b', None, None), ('d', 1, None)],
            [('c', [0, 0], 0), ('e', None, None)],
        ),
        serial_several,
    ),
    Pattern(
        'an input that is not used',
        lambda n: idle(n, [('a', None, 0), ('first_b', [0, 1], None)], [('c', None, 0)]),
        serial_unused,
    ),
    Pattern(
        'one link in several places',
        lambda n: idle(n, [('a', None, 1), ('a', 1, 0), ('a', 0, None)], [('b', 0, 0)]),
        serial_visits,
    ),
)
