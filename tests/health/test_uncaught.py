"""Which ends of a program are noticed, in processes of their own without MPI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mnx.health import uncaught
from tests.launching import starts_jobs

# The module is loaded by its file: importing all of mnx takes longer than a whole case.
WATCH = f"""
import contextlib, importlib.util, sys, threading
spec = importlib.util.spec_from_file_location('uncaught', {uncaught.__file__!r})
uncaught = importlib.util.module_from_spec(spec)
spec.loader.exec_module(uncaught)

def handler(error):
    if uncaught.has_failed(error):
        print('NOTICED', repr(getattr(error, 'code', error)), flush=True)

uncaught.watch(handler)

def quietly(function, *args):
    try:
        function(*args)
    except SystemExit:
        pass
"""

ENDS = {
    'an exception': ('raise ValueError("x")', "ValueError('x')"),
    'an interrupt': ('raise KeyboardInterrupt', 'KeyboardInterrupt()'),
    'exit': ('sys.exit(3)', '3'),
    'exit deep inside': ('def f(): sys.exit(3)\ndef g(): f()\ng()', '3'),
    'exit with a message': ('sys.exit("no such file")', "'no such file'"),
    'exit of the site module': ('exit(4)', '4'),
    'exit through finally': ('try:\n    sys.exit(3)\nfinally:\n    print()', '3'),
    'exit through with': ('with contextlib.ExitStack():\n    sys.exit(3)', '3'),
    'exit raised again': ('try:\n    sys.exit(3)\nexcept SystemExit:\n    raise', '3'),
    'exit past another except': ('try:\n    sys.exit(3)\nexcept ValueError:\n    pass', '3'),
    'exit beside a thread that goes on': (
        'import time\nthreading.Thread(target=time.sleep, args=(0.5,)).start()\nsys.exit(3)',
        '3',
    ),
    'argparse': ('import argparse\nargparse.ArgumentParser().parse_args(["--x"])', '2'),
}

# Not seen on 3.10 and 3.11, as the module's documentation says.
ENDS_SEEN_BY_MONITORING = {
    'SystemExit written out': ('raise SystemExit(3)', '3'),
    'SystemExit of a call': ('def main(): return 3\nraise SystemExit(main())', '3'),
    'a replaced hook': ('sys.excepthook = lambda *args: None\n1 / 0', 'ZeroDivisionError'),
}

NOTHING = {
    'the end of the file': 'pass',
    'exit(0)': 'sys.exit(0)',
    'exit()': 'sys.exit()',
    'SystemExit(0) written out': 'raise SystemExit(0)',
    'exit caught by a function': 'quietly(sys.exit, 3)',
    'exit caught by the program': 'try:\n    sys.exit(3)\nexcept SystemExit:\n    pass',
    'exit suppressed': 'with contextlib.suppress(SystemExit):\n    sys.exit(3)',
    'exit of the site module caught': 'quietly(exit, 3)',
    'exit caught, then exit(0)': 'quietly(sys.exit, 3)\nsys.exit(0)',
    'exit caught, then SystemExit(0)': 'quietly(sys.exit, 3)\nraise SystemExit(0)',
    'exit caught in the call that then exits with 0': (
        'def f():\n    quietly(sys.exit, 3)\n    raise SystemExit(0)\nf()'
    ),
    'exit of a thread': 'threading.Thread(target=sys.exit, args=(3,)).start()',
    'an exception of a thread': 'threading.Thread(target=lambda: 1 / 0).start()',
    'exit at exit': 'import atexit\natexit.register(sys.exit, 5)',
    'a caught exception': 'try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass',
    'argparse help': 'import argparse\nargparse.ArgumentParser().parse_args(["-h"])',
}


WAYS = {
    'python file': ['program_.py'],
    'python -m': ['-m', 'program_'],
    'python -c': ['-c', 'exec(open("program_.py").read())'],
}


def noticed(program: str, way: list[str], folder: Path) -> list[str]:
    """Return what is noticed of `program` when it is started in this way."""
    (folder / 'program_.py').write_text(WATCH + program + '\n')
    result = subprocess.run(
        [sys.executable, *way],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return [line for line in result.stdout.splitlines() if 'NOTICED' in line]


@pytest.mark.parametrize('way', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(('program', 'error'), ENDS.values(), ids=ENDS)
@starts_jobs
def test_noticed(program: str, error: str, way: list[str], tmp_path: Path) -> None:
    (line,) = noticed(program, way, tmp_path)
    assert line == f'NOTICED {error}'


@pytest.mark.skipif(sys.version_info < (3, 12), reason='needs sys.monitoring')
@pytest.mark.parametrize('way', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ('program', 'error'), ENDS_SEEN_BY_MONITORING.values(), ids=ENDS_SEEN_BY_MONITORING
)
@starts_jobs
def test_noticed_by_monitoring(program: str, error: str, way: list[str], tmp_path: Path) -> None:
    (line,) = noticed(program, way, tmp_path)
    assert error in line


@pytest.mark.parametrize('way', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize('program', NOTHING.values(), ids=NOTHING)
@starts_jobs
def test_not_noticed(program: str, way: list[str], tmp_path: Path) -> None:
    assert noticed(program, way, tmp_path) == []
