"""Asked in a child process, answered by all ranks together."""

from __future__ import annotations

import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.transports import gpu_aware
from mnx.transports.gpu_aware import agreed, asked_for, says_yes
from mnx.transports.mpi import MpiTransport
from tests.launching import starts_jobs

ON_THE_HOST = gpu_aware._CHILD.replace('import cupy', 'import numpy as cupy').replace(
    'cupy.cuda.get_current_stream().synchronize()', ''
)


@starts_jobs
def test_a_child_asks_mpi_alone() -> None:
    """The very program, with NumPy's memory: MPI starts in it, though this is a rank of a job."""
    assert 'numpy as cupy' in ON_THE_HOST
    assert says_yes(ON_THE_HOST)


@pytest.mark.parametrize(
    'program',
    [
        'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)',
        "print('yes'); raise SystemExit(1)",
        'pass',
    ],
    ids=['dies', 'fails', 'says nothing'],
)
@starts_jobs
def test_everything_else_is_a_no(program: str) -> None:
    assert not says_yes(program)


@starts_jobs
def test_a_child_that_hangs_is_a_no() -> None:
    assert not says_yes("import time; print('yes', flush=True); time.sleep(1000)", limit_s=1)


def test_one_rank_objects_for_all(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('MNX_GPU_AWARE', raising=False)
    answers = {'probed': True}
    monkeypatch.setattr(gpu_aware, '_probed', lambda: answers['probed'])
    last = comm.rank == comm.size - 1
    transport = MpiTransport(comm.mpi_comm)
    assert agreed(transport, has_gpu=True, may_probe=True)
    assert not agreed(transport, has_gpu=not last, may_probe=True)
    answers['probed'] = not last
    assert not agreed(transport, has_gpu=True, may_probe=True)
    assert agreed(transport, has_gpu=True, may_probe=False)
    monkeypatch.setenv('MNX_GPU_AWARE', '0' if last else '1')
    assert not agreed(transport, has_gpu=True, may_probe=True)
    monkeypatch.setenv('MNX_GPU_AWARE', '1')
    assert agreed(transport, has_gpu=True, may_probe=True)
    transport.close()


def test_an_answer_that_is_none() -> None:
    with pytest.raises(ArgumentError, match="MNX_GPU_AWARE is 0 or 1, but got 'yes'"):
        asked_for({'MNX_GPU_AWARE': 'yes'})
