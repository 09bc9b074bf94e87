"""Benchmarks are jobs of their own, so once is enough for the whole suite."""

import pytest


@pytest.fixture(autouse=True)
def only_once(comm):
    if comm.size > 1:
        pytest.skip('starts jobs of its own, whatever the number of ranks here')
