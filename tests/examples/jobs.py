"""Run an example as a user does, and read what it leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.launching import ROOT, mpiexec

Done = subprocess.CompletedProcess[str]

QUICK = ('--dataset', 'digits', '--unit', 40, '--batchsize', 30)


def run(n: int, script: str, *flags: object) -> Done:
    """Run a script of examples/ on `n` processes."""
    pytest.importorskip('sklearn')
    return mpiexec(n, ROOT / 'examples' / script, *flags)


def accuracy_of(done: Done) -> float:
    assert done.returncode == 0, done.stdout
    (accuracy,) = re.findall(r'test accuracy (\d\.\d+)', done.stdout)
    return float(accuracy)


def log_of(out: Path) -> list[dict[str, Any]]:
    """Return what was logged in each epoch, less the times."""
    log = json.loads((out / 'log').read_text())
    return [{k: v for k, v in entry.items() if k != 'elapsed_time'} for entry in log]
