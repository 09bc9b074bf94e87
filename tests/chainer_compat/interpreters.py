"""Fresh interpreters, as a user starts them: no launcher around them, no PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnx.transports.launch import detect
from tests.launching import clean_environment

_launch = detect(os.environ)

# What starts processes of its own, or takes long, is the same beside one rank and beside four.
with_one_rank = pytest.mark.skipif(
    _launch is not None and _launch.size > 1, reason='runs when the suite has one rank'
)


def run(
    *arguments: str | Path, python: str | Path = sys.executable, cwd: Path, **environment: str
) -> str:
    """Run Python in `cwd` and return what it prints; its error output is in the exception."""
    env = clean_environment()
    del env['PYTHONPATH']
    done = subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env={**env, **environment},
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{arguments} exited with {done.returncode}:\n{done.stderr}')
    return done.stdout
