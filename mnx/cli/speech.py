"""Who speaks, how, and with which exit status the command ends.

Rank 0 speaks; the others do the same work in silence. Before MPI has started, and where it cannot
start, the launcher's environment says who that is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from mnx.errors import MissingPackageError
from mnx.health import except_hook, last_words
from mnx.transports import launch

OK = 0
FAILED = 1  # something is wrong that the command was asked to look at
USAGE = 2  # wrong option, command or file
UNFIT = 3  # a package is missing, or the launcher and MPI do not fit together
UNHEARD = 141  # alone: nobody reads the output to its end, as with `| head`; 128 + SIGPIPE
FIRST_WORD = 1.0  # seconds by which rank 0 may be later than others to say why all leave


def speaks() -> bool:
    """Return whether this process is the one that speaks."""
    launched = launch.detect(os.environ)
    return launched is None or launched.rank == 0


def say(text: str) -> None:
    """Print `text`, on the rank that speaks.

    Raises
    ------
    SystemExit
        Nobody reads any more. With a launcher, it is the launcher whom nobody reads.
    """
    if not speaks():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:
        if launch.detect(os.environ) is not None:
            raise
        # what is still in the buffer would fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(UNHEARD) from None


def complain(text: str) -> None:
    """Print `text` to standard error, on the rank that speaks."""
    if speaks():
        print(f'mnx: {text}', file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print `value` as JSON, on the rank that speaks."""
    say(json.dumps(value, indent=2))


@contextlib.contextmanager
def only_one_speaks() -> Iterator[None]:
    """Silence the other ranks meanwhile, whatever prints."""
    with contextlib.ExitStack() as stack:
        if not speaks():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def needs(*packages: str) -> None:
    """Raise if a package of the extra `cli` is missing.

    Raises
    ------
    MissingPackageError
    """
    for name in packages:
        try:
            __import__(name)
        except ImportError as error:
            raise MissingPackageError(
                f'the command line needs {name}, which cannot be imported ({error}). '
                "Install it by: pip install 'mnx[cli]'"
            ) from error


def leave(code: int) -> None:
    """End this process with `code`, which is the same on all ranks; 0 just returns.

    The except hook would end the job and say so, unless it learns in time that all ranks leave; but
    that is known here, and what there is to say has been said. Before MPI has started, and where a
    launcher of another MPI has started the ranks, the process ends at once.
    """
    apart = code == UNFIT or 'mpi4py.MPI' not in sys.modules
    if code and apart and launch.detect(os.environ) is not None:
        last_words.flush()
        if not speaks():
            time.sleep(FIRST_WORD)  # Open MPI ends the others when the first one leaves
        os._exit(code)
    if code:
        except_hook.all_exit()
        sys.exit(code)
