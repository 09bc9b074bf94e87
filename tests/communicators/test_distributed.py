"""The job as one object: chosen at run time, freeing only what it made."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, ClosedError, MismatchError, MissingPackageError
from tests.launching import clean_environment, starts_jobs

BACKENDS = ['mpi', 'auto', 'naive', 'flat', 'shared_memory', 'two_dimensional']


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('MNX_COMMUNICATOR', raising=False)


@pytest.mark.parametrize('backend', BACKENDS)
def test_context_manager(comm: Communicator, backend: str) -> None:
    with mnx.Distributed(backend) as job:
        assert (job.rank, job.size) == (comm.rank, comm.size)
        assert job.local_rank == comm.intra_rank
        assert job.comm.name == job.name
        total = job.comm.allreduce(np.full(3, job.rank + 1.0))
        np.testing.assert_array_equal(total, np.full(3, job.size * (job.size + 1) / 2))
    with pytest.raises(ClosedError, match='has been finalized'):
        job.comm.allreduce(total)


def test_plain_object(comm: Communicator) -> None:
    job = mnx.Distributed('naive')
    assert job.name == 'naive'
    job.close()
    job.close()
    with pytest.raises(ClosedError):
        job.comm.barrier()
    assert comm.allreduce_obj(1) == comm.size  # MPI is still there


@pytest.mark.parametrize('given', [None, 'naive'])
def test_the_variable_chooses_and_the_argument_overrides(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv('MNX_COMMUNICATOR', 'two_dimensional')
    with mnx.Distributed(given) as job:
        assert job.name == (given or 'two_dimensional')


def test_a_second_one_shares(comm: Communicator) -> None:
    with mnx.Distributed('naive') as outer:
        with mnx.Distributed() as inner:
            assert inner.comm is outer.comm
        assert outer.comm.allreduce_obj(1) == comm.size  # the inner one has not closed it
        with mnx.Distributed('flat') as other:
            assert other.comm is not outer.comm
            assert other.name == 'flat'
        assert outer.comm.allreduce_obj(1) == comm.size
    with mnx.Distributed('naive') as anew:
        assert anew.comm is not outer.comm


def test_a_communicator_stays_the_callers(comm: Communicator) -> None:
    with mnx.Distributed(comm) as job:
        assert job.comm is comm
    assert comm.allreduce_obj(1) == comm.size


def test_null_is_alone(comm: Communicator) -> None:
    with mnx.Distributed('null') as job:
        assert (job.rank, job.size, job.name) == (0, 1, 'local')
        assert job.comm.allreduce_obj(comm.rank) == comm.rank


def test_an_error_inside_does_not_wait_for_other_ranks(comm: Communicator) -> None:
    with pytest.raises(ZeroDivisionError), mnx.Distributed('naive'):
        raise ZeroDivisionError
    with mnx.Distributed('flat') as job:  # takes no notice of the one before
        assert job.name == 'flat'


@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize(
    ('name', 'error', 'message'),
    [
        ('smoke', ArgumentError, "unknown backend 'smoke'.*mpi, null, auto, naive"),
        ('oneccl', MissingPackageError, "no backend 'oneccl'"),
    ],
)
def test_unknown_backends(
    comm: Communicator, name: str, error: type[Exception], message: str, nested: bool
) -> None:
    outer = mnx.Distributed('naive') if nested else None
    with pytest.raises(error, match=message):
        mnx.Distributed(name if comm.rank == comm.size - 1 else 'naive')
    if outer is not None:
        outer.close()


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('name', ['flat', 'null'])
def test_ranks_that_disagree(
    comm: Communicator, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MNX_COMMUNICATOR', name if comm.rank == 0 else 'naive')
    with pytest.raises(MismatchError, match=f'Distributed {name}'):
        mnx.Distributed()


@starts_jobs
def test_without_a_launcher() -> None:
    text = 'import mnx\nwith mnx.Distributed() as job:\n    print(job.rank, job.size, job.name)\n'
    done = subprocess.run(
        [sys.executable, '-c', text],
        env={k: v for k, v in clean_environment().items() if k != 'MNX_COMMUNICATOR'},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=os.getcwd(),
    )
    assert done.stdout.split() == ['0', '1', 'local']
