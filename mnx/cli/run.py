"""``mnx run script.py``: a script with mnx's safety nets, and an old one as it is."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from mnx.cli import as_chainermn as old_name
from mnx.cli import script, speech, watched
from mnx.errors import ArgumentError


def add_to(app: Any, choose: Callable[[Callable[[], int]], None]) -> None:
    """Add the command to a typer application."""
    import typer

    # Everything behind the script's name is the script's.
    @app.command(context_settings={'allow_interspersed_args': False})
    def run(
        path: Annotated[str, typer.Argument(metavar='SCRIPT', help='A file of Python.')],
        arguments: Annotated[
            list[str] | None, typer.Argument(metavar='ARGUMENTS', help='What the script gets.')
        ] = None,
        as_chainermn: Annotated[
            bool, typer.Option('--as-chainermn', help='`import chainermn` gives mnx.')
        ] = False,
    ) -> None:
        """Run a script; a failing rank ends the job, and says why."""
        choose(lambda: execute(path, arguments or (), as_chainermn=as_chainermn))


def execute(path: str, arguments: Sequence[str], *, as_chainermn: bool) -> int:
    """Run the script; its errors and its `sys.exit` pass."""
    try:
        script.check(path)
    except ArgumentError as error:
        speech.complain(str(error))
        return speech.USAGE
    watched.begin()
    if as_chainermn:
        old_name.install()
        old_name.let_one_rank_deprecate()
    script.execute(path, arguments)
    return speech.OK
