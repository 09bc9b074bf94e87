"""Tables: with lines and colours on a terminal, plain words in columns in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from mnx.cli import speech

WIDTH = 120  # of what goes to a pipe: nobody says how wide it is
_WIDEST = 1000


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()
) -> None:
    """Print rows of words, on the rank that speaks; those of the columns `right` at the right."""
    if not speech.speaks():
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for column in columns:
        if column in right:
            table.add_column(column, justify='right', no_wrap=True)
        else:
            table.add_column(column, overflow='fold')
    for row in rows:
        table.add_row(*row)
    console = _console()
    if right:  # numbers are not to be cut: long lines go on in the terminal's next one
        wide = console.options.update(max_width=_WIDEST)
        width = max(console.width, console.measure(table, options=wide).maximum)
        console.size = (width, console.height)  # a width alone is not heard on a dumb terminal
    _print_stripped(console, table)


def _print_stripped(console: Any, table: Any) -> None:
    """Print without the spaces that fill up the last column."""
    with console.capture() as captured:
        console.print(table)
    speech.say('\n'.join(line.rstrip() for line in captured.get().splitlines()))


def _console() -> Any:
    """Return rich's console for standard output; words in brackets are no markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH
    return Console(width=width, markup=False, highlight=False, emoji=False)
