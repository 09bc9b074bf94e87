"""See an exception that nothing catches, while the process can still act on it.

`sys.excepthook` never sees SystemExit, and is often replaced by others (rich, IPython). So:

* Python 3.12 and later tell by `sys.monitoring` when the outermost frame of the program is left
  by an exception, whatever its type. Nobody is above that frame: the exception is uncaught. It
  costs nothing but ~80 ns for each frame that an exception leaves.
* Python 3.10 and 3.11: `sys.excepthook` for all but SystemExit. `sys.exit`, `exit` and `quit` are
  wrapped and remember the frames that the exception leaves; when the interpreter shuts down,
  where those frames ended tells whether it was caught.

Left out on 3.10 and 3.11 only: ``raise SystemExit(3)`` written out, and ``from sys import exit``
before mnx is imported, do not pass the wrapper; and who replaces `sys.excepthook` later without
calling it replaces this too. Such a rank ends as it would without mnx.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any

Handler = Callable[[BaseException], None]


def watch(handler: Handler) -> None:
    """Have `handler` called with each exception that ends the main thread's program."""
    if not _watch_by_monitoring(handler):
        _watch_excepthook(handler)
        _watch_exit(handler)


def has_failed(error: BaseException) -> bool:
    """Return whether a process that ends by `error` ends with a status other than 0."""
    return not isinstance(error, SystemExit) or error.code not in (None, 0)


def _is_program(frame: FrameType) -> bool:
    """Return whether `frame` is the outermost of ``python file``, ``-c`` or ``-m module``."""
    if frame.f_back is not None:
        return False
    name = frame.f_globals.get('__name__')
    return (name, frame.f_code.co_name) in {
        ('__main__', '<module>'),
        ('runpy', '_run_module_as_main'),
    }


def _is_interactive() -> bool:
    """Return whether a prompt follows, where the user goes on after an exception."""
    return bool(sys.flags.interactive) or hasattr(sys, 'ps1')


if sys.version_info >= (3, 12):

    def _watch_by_monitoring(handler: Handler) -> bool:
        def unwound(code: CodeType, offset: int, error: BaseException) -> None:
            # most unwound frames are not <module>: the cheap question first
            if code.co_name not in ('<module>', '_run_module_as_main'):
                return
            in_main = threading.get_ident() == threading.main_thread().ident
            if in_main and _is_program(sys._getframe(1)) and not _is_interactive():
                handler(error)

        monitoring = sys.monitoring
        tool = next((k for k in (4, 3, 1, 0, 2, 5) if monitoring.get_tool(k) is None), None)
        if tool is None:
            return False
        monitoring.use_tool_id(tool, 'mnx')
        monitoring.register_callback(tool, monitoring.events.PY_UNWIND, unwound)
        monitoring.set_events(tool, monitoring.events.PY_UNWIND)
        return True

else:

    def _watch_by_monitoring(handler: Handler) -> bool:
        return False


def _watch_excepthook(handler: Handler) -> None:
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not _is_interactive():
            # the handler prints by sys.excepthook, which must not be this one again
            sys.excepthook = previous
            handler(error.with_traceback(traceback))
        previous(kind, error, traceback)

    sys.excepthook = hook


_last_exit: list[tuple[SystemExit, TracebackType | None]] = []


def _watch_exit(handler: Handler) -> None:
    sys.exit = _keeping(sys.exit)
    quitter: Any = type(getattr(builtins, 'exit', None))
    if quitter.__name__ == 'Quitter':  # absent under python -S
        quitter.__call__ = _keeping(quitter.__call__)

    def at_shutdown() -> None:
        for error, stack in _last_exit:
            if _was_left_by(stack):
                handler(error.with_traceback(stack))

    # Runs before the interpreter waits for threads that may never end, unlike atexit. Private,
    # but this code only serves versions that no longer change.
    threading._register_atexit(at_shutdown)  # type: ignore[attr-defined]


def _keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SystemExit as error:
            if threading.get_ident() == threading.main_thread().ident:
                _last_exit[:] = [(error, _stack_above(sys._getframe()))]
            raise

    return call


def _stack_above(frame: FrameType) -> TracebackType | None:
    """Return the callers of `frame` and their present places, in the form of a traceback.

    These versions complete an exception's own traceback only when something catches it.
    """
    stack = None
    caller = frame.f_back
    while caller is not None:
        stack = TracebackType(stack, caller, caller.f_lasti, caller.f_lineno)
        caller = caller.f_back
    return stack


def _was_left_by(stack: TracebackType | None) -> bool:
    """Return whether the program, which has ended, ended by the exception raised at `stack`.

    A frame keeps the place where it was left. If nothing caught the exception, that is for every
    frame its place in `stack`, or an instruction that raises again what a clause has seen.
    """
    if stack is None or not _is_program(stack.tb_frame):
        return False
    entry: TracebackType | None = stack
    while entry is not None:
        if entry.tb_frame.f_lasti != entry.tb_lasti and not _raises_again(entry.tb_frame):
            return False
        entry = entry.tb_next
    return True


def _raises_again(frame: FrameType) -> bool:
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            is_bare_raise = instruction.opname == 'RAISE_VARARGS' and instruction.arg == 0
            return is_bare_raise or instruction.opname == 'RERAISE'
    return False
