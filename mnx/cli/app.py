"""From the words of a command line to the command: `parse`, then run it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from mnx.cli import bench, check, info, speech, train
from mnx.cli import run as run_command
from mnx.errors import LaunchError, MissingPackageError

Command = Callable[[], int]  # returns the exit status

COMMANDS = (info, check, run_command, bench, train)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` (default: ``sys.argv[1:]``) name."""
    speech.leave(run_words(sys.argv[1:] if arguments is None else arguments))


def run_words(arguments: Sequence[str]) -> int:
    """Run a command; return the exit status."""
    try:
        chosen = parse(arguments)
    except MissingPackageError as error:
        speech.complain(str(error))
        return speech.UNFIT
    return chosen if isinstance(chosen, int) else chosen()


def parse(arguments: Sequence[str]) -> Command | int:
    """Return the command with its options, or the exit status if there is none to run.

    It is run by the caller, outside of what the library puts around it: an old script must see
    its own errors.

    Raises
    ------
    MissingPackageError
        The extra `cli` is not installed.
    """
    speech.needs('typer', 'rich')
    chosen: list[Command] = []
    app = _app(chosen.append)
    with speech.only_one_speaks():
        try:
            app(list(arguments), prog_name='mnx')
        except SystemExit as end:
            code = end.code
    return chosen[0] if chosen else _status(code)


def _status(code: Any) -> int:
    return code if isinstance(code, int) else speech.OK if code is None else speech.USAGE


def _app(choose: Callable[[Command], None]) -> Any:
    import typer

    def guarded(command: Command) -> None:
        choose(lambda: _explained(command))

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help=_HELP,
    )
    app.callback()(_top)  # with one, a single command needs its name, too
    for module in COMMANDS:
        module.add_to(app, guarded)
    return app


_HELP = (
    'Multi-process training for Chainer. Start a command on many ranks by: mpiexec -n 4 mnx ...\n\n'
    'Exit status: 0 fine, 1 a check or script failed, 2 wrong use, '
    '3 a package is missing or the launcher and MPI do not fit together, '
    '141 nobody reads the output.'
)


def _top() -> None:
    pass


def _explained(command: Command) -> int:
    """Run a command that reports on the installation: say what is unfit in a line or two."""
    try:
        return command()
    except (LaunchError, MissingPackageError) as error:
        speech.complain(str(error))
        return speech.UNFIT
