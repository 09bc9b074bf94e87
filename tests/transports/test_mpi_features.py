"""What an MPI can do: asked here, and of a process of its own, which may not come back."""

from __future__ import annotations

import pytest

from mnx.communicators import Communicator
from mnx.transports import mpi_features
from tests.launching import starts_jobs


def test_this_one_does_what_mnx_needs(comm: Communicator) -> None:
    features = mpi_features.features()
    assert features['threads'] == 'multiple'
    assert features['shared_windows']
    assert int(features['standard'].split('.')[0]) >= 3
    assert comm.allgather_obj(features) == [features] * comm.size


@starts_jobs
def test_a_child_tells_the_same() -> None:
    assert mpi_features.of_a_child() == mpi_features.features()


@starts_jobs
@pytest.mark.parametrize(
    ('child', 'problem'),
    [
        ('import os; os._exit(3)', 'exit status 3'),
        ('raise SystemExit("noise\\nno device found")', 'no device found'),
        ('print("no JSON")', 'exit status 0'),
        ('import os; os.abort()', 'exit status -6'),
    ],
    ids=['silent', 'says_why', 'nonsense', 'killed'],
)
def test_a_child_that_mpi_ends(child: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_features, '_CHILD', child)
    assert mpi_features.of_a_child() == {'problem': problem}


@starts_jobs
def test_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_features, '_CHILD', 'import time; time.sleep(1000)')
    monkeypatch.setattr(mpi_features, 'LIMIT_S', 0.2)
    assert mpi_features.of_a_child() == {'problem': 'MPI did not start within 0.2 seconds'}
