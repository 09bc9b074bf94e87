"""The examples of tensor parallelism, as a user runs them."""

import json
import re

import numpy as np
import pytest

from tests.launching import ROOT, mpiexec

LINEAR = ROOT / 'examples' / 'mnist' / 'train_mnist_tensor_parallel.py'
CONVOLUTION = ROOT / 'examples' / 'parallel_convolution' / 'train_parallel_convolution.py'


@pytest.fixture(autouse=True)
def only_once(comm):
    if comm.size > 1:
        pytest.skip('starts jobs of its own, whatever the number of ranks here')
    pytest.importorskip('sklearn')


def run(n, script, *flags):
    done = mpiexec(n, script, '--dataset', 'digits', *flags)
    assert done.returncode == 0, done.stdout
    (accuracy,) = re.findall(r'test accuracy (\d\.\d+)', done.stdout)
    return float(accuracy), done.stdout


def losses(out):
    return [entry['main/loss'] for entry in json.loads((out / 'log').read_text())]


@pytest.mark.slow
@pytest.mark.limit(600)
def test_linear_layers_learn_as_those_of_one_process(tmp_path):
    runs = {n: run(n, LINEAR, '-u', 150, '-e', 15, '-o', tmp_path / str(n)) for n in (1, 3)}
    assert runs[3][0] >= 0.96
    assert runs[3][0] == pytest.approx(runs[1][0], abs=0.006)  # 2 of 355 images
    np.testing.assert_allclose(losses(tmp_path / '3'), losses(tmp_path / '1'), rtol=5e-3)
    (serial,), parts = (numbers(runs[n][1]) for n in (1, 3))
    assert sum(parts) == serial + 2 * 150  # the bias of the second layer is on each process
    assert max(parts) < 0.36 * serial


def numbers(text):
    (line,) = re.findall(r'parameters: +(.*) on processes', text)
    return [int(number) for number in line.split(', ')]


def test_its_file_is_that_of_one_process(tmp_path):
    """After one epoch, so that rounding has not grown."""
    for n in (1, 2):
        run(n, LINEAR, '-u', 33, '-e', 1, '-o', tmp_path / str(n))
    with np.load(tmp_path / '1' / 'model.npz') as one, np.load(tmp_path / '2' / 'model.npz') as two:
        assert set(one.files) == set(two.files)
        for name in one.files:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.limit(600)
def test_convolutions_learn_the_digits(tmp_path):
    accuracy, text = run(3, CONVOLUTION, '-o', tmp_path / 'model.npz')
    assert accuracy >= 0.96
    assert text.count('epoch  8') == 1
    with np.load(tmp_path / 'model.npz') as file:
        assert file['predictor/0/W'].shape == (20, 1, 3, 3)


def test_the_scripts_do_not_ask_who_they_are():
    for script in (LINEAR, CONVOLUTION):
        assert not re.search(r'if .*\brank\b', script.read_text())
