"""Where a thread is, in the words of whoever wrote the script."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
_STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ('stdlib', 'platstdlib'))
_INSTALLED = (f'{os.sep}site-packages{os.sep}', f'{os.sep}dist-packages{os.sep}')


def describe(frame: FrameType) -> tuple[str, str]:
    """Return what runs in `frame`, and where.

    Parameters
    ----------
    frame : frame
        The innermost of a thread.

    Returns
    -------
    call : str
        The function of mnx that the program has called; outside of mnx the function it is in.
    site : str
        ``file:line`` of the innermost frame that is not mnx's; where that is in a library, also
        of the innermost of the program's own.
    """
    call, outer = frame.f_code.co_name, frame
    while _is_mnx(outer) and outer.f_back is not None:
        call, outer = _name(outer), outer.f_back
    return (call if outer is not frame else _name(frame)), _site(outer)


def _site(frame: FrameType) -> str:
    own: FrameType | None = frame
    while own is not None and (_is_library(own) or _is_mnx(own)):
        own = own.f_back
    return _line(frame) if own in (frame, None) else f'{_line(frame)}, from {_line(own)}'


def _line(frame: FrameType | None) -> str:
    return '' if frame is None else f'{frame.f_code.co_filename}:{frame.f_lineno}'


def _name(frame: FrameType) -> str:
    name = frame.f_code.co_name
    if name == '__exit__':
        return 'the end of a with block'
    # `__call__` says nothing without its class, which Python tells from 3.11 on
    is_special = name.startswith('__')
    return str(getattr(frame.f_code, 'co_qualname', name)) if is_special else name


def _is_mnx(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(('<frozen', *_STANDARD)) or any(part in file for part in _INSTALLED)
