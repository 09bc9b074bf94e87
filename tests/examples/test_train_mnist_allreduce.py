"""The example of all-reduces in the graph, as a user runs it."""

from __future__ import annotations

import re

import pytest

from tests.examples.jobs import Done, run
from tests.launching import starts_jobs

SCRIPT = 'mnist/train_mnist_allreduce.py'
QUICK = ('--dataset', 'digits', '--unit', 50, '--epoch', 3)


def accuracies(done: Done) -> list[float]:
    assert done.returncode == 0, done.stdout
    return [float(text) for text in re.findall(r'test accuracy (\d\.\d+)', done.stdout)]


@pytest.mark.parametrize('n', [1, 3])
@starts_jobs
def test_it_learns_and_one_process_speaks(n: int) -> None:
    done = run(n, SCRIPT, *QUICK, '--batchsize', 120 // n)
    assert len(accuracies(done)) == 3
    assert accuracies(done)[-1] > 0.85
    assert done.stdout.count('communicator:') == 1


@starts_jobs
def test_the_sum_is_the_mean_at_a_higher_rate() -> None:
    """With two processes both are the same numbers: nGraph's rate counted twice."""
    means = run(2, SCRIPT, *QUICK, '--op', 'mean', '--lr', 0.25)
    sums = run(2, SCRIPT, *QUICK, '--op', 'sum', '--lr', 0.125)
    assert accuracies(means) == accuracies(sums)


@starts_jobs
def test_an_unknown_backend_ends_the_job() -> None:
    done = run(2, SCRIPT, *QUICK, '--backend', 'smoke')
    assert done.returncode != 0
    assert "unknown backend 'smoke'" in done.stdout
