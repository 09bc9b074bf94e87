"""The example of a sequence model over two processes."""

from __future__ import annotations

import re

import pytest

from tests.examples.jobs import run

SCRIPT = 'seq2seq/train_numbers.py'


@pytest.fixture(autouse=True)
def only_once(comm):
    if comm.size > 1:
        pytest.skip('starts jobs of its own, whatever the number of ranks here')


@pytest.mark.slow
@pytest.mark.limit(600)
def test_it_learns_to_read_numbers_it_has_not_seen():
    done = run(2, SCRIPT, '-e', 5)
    assert done.returncode == 0, done.stdout
    shares = re.findall(r'epoch +\d+: +(\d+)% of the test right', done.stdout)
    assert len(shares) == 5
    assert int(shares[-1]) >= 95
    assert len(re.findall(r'^[a-z ]+ -> \d+$', done.stdout, re.MULTILINE)) == 4


def test_another_number_of_processes():
    done = run(3, SCRIPT)
    assert done.returncode != 0
    assert 'cut in 2, but there are 3' in done.stdout
