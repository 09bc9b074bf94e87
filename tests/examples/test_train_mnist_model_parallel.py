"""The examples of model parallelism as a user runs them: jobs of their own, so once is enough."""

from __future__ import annotations

import pytest

from tests.examples.jobs import QUICK, accuracy_of, log_of, run

ONE_PROCESS = 'mnist/train_mnist.py'
TWO_PARTS = 'mnist/train_mnist_model_parallel.py'
PAIRS = 'mnist/train_mnist_dual_parallel.py'
SPLIT_WEIGHTS = 'mnist/train_mnist_tensor_parallel.py'
EVERY = pytest.mark.parametrize(('script', 'n', 'n_like'), [(TWO_PARTS, 2, 1), (PAIRS, 4, 2)])


@pytest.fixture(autouse=True)
def only_once(comm):
    if comm.size > 1:
        pytest.skip('starts jobs of its own, whatever the number of ranks here')


@EVERY
@pytest.mark.limit(600)
def test_the_losses_are_those_of_data_parallel_training(tmp_path, script, n, n_like):
    """With as many copies of the model, from the same weights, on the same batches."""
    flags = (*QUICK, '-e', 3, '--seed', 5)
    done = run(n, script, *flags, '-o', tmp_path / 'parts')
    accuracy = accuracy_of(done)
    like = accuracy_of(run(n_like, ONE_PROCESS, *flags, '-o', tmp_path / 'whole'))
    assert accuracy == pytest.approx(like, abs=1e-4)
    parts, whole = log_of(tmp_path / 'parts'), log_of(tmp_path / 'whole')
    assert len(parts) == len(whole) == 3
    for entry, other in zip(parts, whole, strict=True):
        assert entry == pytest.approx(other, rel=1e-5)
    assert parts[0]['main/loss'] > 1.2 * parts[-1]['main/loss']
    for once in ('data: ', 'epoch       main/loss', 'test accuracy'):
        assert done.stdout.count(once) == 1


@pytest.mark.slow
@pytest.mark.limit(600)
@pytest.mark.parametrize(('script', 'n'), [(TWO_PARTS, 2), (PAIRS, 4)])
def test_they_reach_96_percent_on_the_digits(tmp_path, script, n):
    done = run(n, script, '--dataset', 'digits', '-u', 200, '-b', 50, '-e', 10, '-o', tmp_path)
    assert accuracy_of(done) >= 0.96


@pytest.mark.slow
@pytest.mark.limit(600)
@pytest.mark.parametrize('script', [PAIRS, SPLIT_WEIGHTS])
def test_interrupted_and_resumed_they_end_with_the_same_numbers(tmp_path, script):
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    accuracy_of(run(2, script, *QUICK, '-e', 4, '-o', whole))
    accuracy_of(run(2, script, *QUICK, '-e', 2, '-o', part))
    accuracy_of(run(2, script, *QUICK, '-e', 4, '-o', part, '--resume', part / 'snapshot'))
    assert log_of(part) == log_of(whole)


@pytest.mark.parametrize(
    ('script', 'n', 'message'),
    [(TWO_PARTS, 3, 'cut in 2, but there are 3'), (PAIRS, 3, 'in pairs, but there are 3')],
)
def test_another_number_of_processes_is_an_error_on_all(tmp_path, script, n, message):
    done = run(n, script, '--dataset', 'digits', '-o', tmp_path)
    assert done.returncode != 0
    assert message in done.stdout
    assert 'Traceback' in done.stdout


@pytest.mark.parametrize('script', [TWO_PARTS, PAIRS])
def test_the_help_is_its_own(script):
    done = run(1, script, '--help')
    assert done.returncode == 0
    assert 'that is cut in two, on' in done.stdout
