"""Start the command ``mnx`` from a test: into a pipe, on a terminal, without its libraries."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from tests.launching import clean_environment, find_mpiexec, mpiexec

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec('typer') is None or importlib.util.find_spec('rich') is None,
    reason='needs the extra `cli`',
)


def mnx(
    n: int, *args: object, timeout: float = 200, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``mpiexec -n N python -m mnx ...``; its output holds standard error, too."""
    return mpiexec(n, Path('-m'), 'mnx', *args, timeout=timeout, env=env)


def document_in(output: str) -> Any:
    """Return the only JSON document in what a job prints; an MPI may print lines before it."""
    (start,) = re.finditer(r'^[\[{]$', output, re.MULTILINE)
    return json.loads(output[start.start() :])


def alone(
    *args: object, env: Mapping[str, str] | None = None, stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m mnx ...`` without a launcher; standard output and error apart."""
    return subprocess.run(
        [sys.executable, '-m', 'mnx', *map(str, args)],
        env={**clean_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=200,
        check=False,
    )


def on_terminal(n: int, *args: object) -> tuple[int, str]:
    """Run the command on a terminal of 100 columns; return exit status and text seen."""
    launcher = [find_mpiexec(), '-n', str(n)] if n > 1 else []
    master, slave = pty.openpty()
    environment = {**clean_environment(), 'COLUMNS': '100', 'TERM': 'xterm'}
    with subprocess.Popen(
        [*launcher, sys.executable, '-m', 'mnx', *map(str, args)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        seen = _read(master)
    return process.returncode, re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', seen)


def _read(master: int) -> str:
    """Return all that is written until the last writer has closed the terminal."""
    pieces = []
    try:
        while piece := os.read(master, 65536):
            pieces.append(piece)
    except OSError:  # Linux says so at the end
        pass
    os.close(master)
    return b''.join(pieces).decode(errors='replace')


def hide(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which these packages cannot be imported."""
    for name in names:
        (folder / f'{name}.py').write_text(f'raise ImportError("no {name} in this test")\n')
    path = clean_environment()['PYTHONPATH']
    return {'PYTHONPATH': os.pathsep.join([str(folder), path])}
