"""Fresh interpreters, as a user starts them: no launcher around them, no PYTHONPATH."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.launching import clean_environment


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
        timeout=200,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{arguments} exited with {done.returncode}:\n{done.stderr}')
    return done.stdout
