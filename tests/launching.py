"""Start real MPI jobs from a test: `mpiexec` as a function."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from mnx.transports.launch import detect

ROOT = Path(__file__).resolve().parents[1]

_suite = detect(os.environ)

# What these jobs do does not depend on the suite they are started from, only how long they take.
starts_jobs = pytest.mark.skipif(
    _suite is not None and _suite.size > 1,
    reason='starts jobs of its own: the suite on 1 rank does',
)

# The other ranks have no part in these, so that the suites on several need not wait for them.
alone = pytest.mark.skipif(
    _suite is not None and _suite.size > 1,
    reason='takes no other rank: the suite on 1 rank does',
)

# A job started from a rank of another job must not take itself for a part of that one.
_OF_LAUNCHERS = ('PMI_', 'PMIX_', 'OMPI_', 'PRTE_', 'HYDI_', 'HYDRA_', 'MPI_LOCAL', 'MPIEXEC_')

# The first lines of a program whose MNX_TIMEOUT is for what comes later: on a busy machine ranks
# start seconds apart.
START_AT_ANY_TIME = """
from mnx.health import start_limit
start_limit._is_over = True
"""

# The first lines of a program of which all ranks fail, and are to know it of one another.
WAIT_FOR_ALL_FAILURES = """
from mnx.health import except_hook
except_hook.GRACE = 1000
"""

_SETTINGS = {
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_NUM_THREADS': '1',
    # Open MPI alone needs to be asked: for root, and for more ranks than cores (5.x and 4.x)
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
    'PRTE_MCA_rmaps_default_mapping_policy': ':oversubscribe',
    'OMPI_MCA_rmaps_base_oversubscribe': '1',
    # whose launcher gives its ranks a terminal, which would see colours
    'TERM': 'dumb',
}


def find_mpiexec() -> str:
    """Return the mpiexec beside this Python, which fits its mpi4py, or the first in PATH."""
    beside = Path(sys.executable).parent / 'mpiexec'
    found = str(beside) if beside.exists() else shutil.which('mpiexec')
    if found is None:
        raise FileNotFoundError('no mpiexec beside this Python and none in PATH')
    return found


def clean_environment() -> dict[str, str]:
    """Return the environment for a new job: without marks of a launcher, with mnx to import."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_LAUNCHERS)}
    kept.pop('PYTHONUNBUFFERED', None)  # it tears the lines of several ranks apart
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**kept, **_SETTINGS, 'PYTHONPATH': path}


def mpiexec(
    n: int,
    script: str | Path,
    *args: object,
    timeout: float = 200,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `script` (a file, or its text) with this Python on `n` ranks; return when it ended.

    `stdout` of the result holds the output of all ranks, standard error too. `env` is added to
    a clean environment. Standard input is empty. Raises subprocess.TimeoutExpired, with the
    output so far, after ending the job.
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(script, str):
            text, script = script, Path(folder) / 'script.py'
            script.write_text(text)
        command = [find_mpiexec(), '-n', str(n), sys.executable, str(script), *map(str, args)]
        return _run(command, {**clean_environment(), **(env or {})}, timeout)


def _run(
    command: list[str], env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        command,
        env=env,
        text=True,
        errors='replace',
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            output = _end(process)
            raise subprocess.TimeoutExpired(command, timeout, output) from None
    return subprocess.CompletedProcess(command, process.returncode, output)


def _end(process: subprocess.Popen[str]) -> str:
    """End the job: ask the launcher, which knows its ranks; then the process group, by force."""
    process.terminate()
    try:
        return process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]
