"""Run a file as ``python file`` would, inside a process that runs already."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import TracebackType

from mnx.errors import ArgumentError


def execute(path: str, arguments: Sequence[str]) -> None:
    """Run the script at `path` as ``__main__``, with its own `sys.argv` and `sys.path`.

    Its module stays the main one: what runs when Python ends, and children that
    `multiprocessing` spawns, find it. Its errors are shown without the frames of mnx.
    """
    with io.open_code(str(Path(path).absolute())) as file:
        source = file.read()
    sys.argv[:] = [path, *arguments]
    if not getattr(sys.flags, 'safe_path', False):  # since Python 3.11: python -P
        sys.path[0] = str(Path(path).resolve().parent)
    _show_errors_without_own_frames()
    module = _main_module(path)
    sys.modules['__main__'] = module
    # not inherited: the `annotations` of this file are none of the script's business
    exec(compile(source, path, 'exec', dont_inherit=True), module.__dict__)


def check(path: str) -> None:
    """Raise ArgumentError if `path` is no file."""
    if not Path(path).is_file():
        raise ArgumentError(
            f'run: the script is missing, expected a file but got {path!r}. Check its name; '
            f'the current folder is {Path.cwd()}.'
        )


def _main_module(path: str) -> types.ModuleType:
    module = types.ModuleType('__main__')
    module.__doc__ = None
    module.__file__ = path
    module.__loader__ = SourceFileLoader('__main__', path)
    vars(module)['__builtins__'] = sys.modules['builtins']
    vars(module)['__cached__'] = None
    return module


def _show_errors_without_own_frames() -> None:
    """Let tracebacks begin with the script. The except hook prints by `sys.excepthook`, too."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        trace = _of_script(trace)
        previous(kind, error.with_traceback(trace), trace)

    sys.excepthook = hook


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback below `execute`; all of it if that is not in it."""
    entry = trace
    while entry is not None:
        if entry.tb_frame.f_code is execute.__code__:
            return entry.tb_next or trace
        entry = entry.tb_next
    return trace
