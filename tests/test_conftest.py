"""The suite's own safety nets, in a suite of one small file."""

from __future__ import annotations

from pathlib import Path

from tests.launching import mpiexec, starts_jobs

SUITE = """
import os

import pytest

import mnx

rank = mnx.create_communicator('naive').rank


@pytest.mark.parametrize('x', ['same', f'rank{rank // 2}'])
def test_parameter(x):
    pass
"""

RUN = """
import sys

import pytest

sys.exit(pytest.main(['-q', '-p', 'tests.conftest', '-p', 'no:cacheprovider', sys.argv[1]]))
"""


@starts_jobs
def test_ranks_that_collect_different_tests_are_told_the_first(tmp_path: Path) -> None:
    path = tmp_path / 'test_small.py'
    path.write_text(SUITE)
    result = mpiexec(3, RUN, path)
    assert result.returncode != 0
    assert 'different tests, first #1: ' in result.stdout
    assert 'test_parameter[rank0] on rank 0' in result.stdout
    assert 'test_parameter[rank1] on rank 2' in result.stdout
    assert 'same' not in result.stdout
