"""Run a benchmark once, as a user does, and read what it wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.launching import ROOT, mpiexec

BENCHMARKS = ROOT / 'benchmarks'


def rows_of(n: int, benchmark: str, folder: Path, *options: object) -> list[dict[str, Any]]:
    """Run a benchmark on `n` ranks; return its rows, all of them with a time and a ratio."""
    file = folder / f'{benchmark}.json'
    job = mpiexec(n, BENCHMARKS / f'{benchmark}.py', *options, '--repeats', 2, '--json', file)
    assert job.returncode == 0, job.stdout
    result = json.loads(file.read_text())
    assert result['benchmark'] == benchmark
    assert result['command'].startswith(f'mpiexec -n {n} python benchmarks/{benchmark}.py')
    assert str(folder) not in file.read_text()
    for row in result['rows']:
        assert row['us'] > 0
        assert math.isfinite(row['ratio'])
    return result['rows']
