"""The example as a user runs it: jobs of its own, so once is enough for the whole suite."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.launching import ROOT, clean_environment, mpiexec

SCRIPT = ROOT / 'examples' / 'mnist' / 'train_mnist.py'
QUICK = ('--dataset', 'digits', '--unit', 40, '--batchsize', 30)


@pytest.fixture(autouse=True)
def only_once(comm):
    if comm.size > 1:
        pytest.skip('starts jobs of its own, whatever the number of ranks here')


def run(n, *flags, **options):
    pytest.importorskip('sklearn')
    return mpiexec(n, SCRIPT, *flags, **options)


def accuracy_of(done):
    assert done.returncode == 0, done.stdout
    (accuracy,) = re.findall(r'test accuracy (\d\.\d+)', done.stdout)
    return float(accuracy)


def parameters(out):
    with np.load(out / 'snapshot', allow_pickle=True) as file:
        keys = [key for key in file.files if re.search('updater/(model|optimizer):', key)]
        return {key: file[key].tobytes() for key in keys}


def test_what_it_says_and_leaves_behind(tmp_path):
    done = run(3, *QUICK, '-e', 2, '-o', tmp_path)
    assert accuracy_of(done) > 0.3
    assert 'processes:    3, device @numpy' in done.stdout
    assert "communicator: shared_memory ('auto': all 3 ranks" in done.stdout
    assert 'data:         Digits from scikit-learn (real handwriting, not MNIST)' in done.stdout
    assert 'batch:        30 per process, 90 in all' in done.stdout
    assert 'this epoch [' in done.stdout  # the progress bar
    for once in ('processes:', 'data: ', 'epoch       main/loss', 'test accuracy'):
        assert done.stdout.count(once) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {'log', 'snapshot', 'loss.png', 'accuracy.png'}
    log = json.loads((tmp_path / 'log').read_text())
    assert [entry['epoch'] for entry in log] == [1, 2]
    assert log[-1]['validation/main/accuracy'] == pytest.approx(accuracy_of(done), abs=1e-4)


@pytest.mark.slow
@pytest.mark.limit(600)
def test_four_processes_reach_96_percent_on_the_digits_in_a_minute(tmp_path):
    start = time.monotonic()
    done = run(4, '--dataset', 'digits', '-o', tmp_path)
    assert accuracy_of(done) >= 0.96
    assert time.monotonic() - start < 300  # 60 on two cores of our own


@pytest.mark.slow
@pytest.mark.limit(600)
@pytest.mark.parametrize('n', [1, 2])
def test_interrupted_and_resumed_it_ends_with_the_same_bits(tmp_path, n):
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    accuracy = accuracy_of(run(n, *QUICK, '-e', 6, '-o', whole))
    accuracy_of(run(n, *QUICK, '-e', 3, '-o', part))
    assert parameters(part) != parameters(whole)
    rest = run(n, *QUICK, '-e', 6, '-o', part, '--resume', part / 'snapshot')
    assert accuracy_of(rest) == accuracy
    assert parameters(part) == parameters(whole)
    assert [e['epoch'] for e in json.loads((part / 'log').read_text())] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.limit(600)
def test_started_again_with_checkpoints(tmp_path):
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    accuracy = accuracy_of(run(2, *QUICK, '-e', 3, '-o', whole))
    accuracy_of(run(2, *QUICK, '-e', 2, '-o', part, '--checkpoint'))
    rest = run(2, *QUICK, '-e', 3, '-o', part, '--checkpoint')
    assert accuracy_of(rest) == accuracy
    assert parameters(part) == parameters(whole)
    more = run(3, *QUICK, '-e', 4, '-o', part, '--checkpoint')
    assert accuracy_of(more) > 0.3
    assert '2 ranks then, 3 now' in more.stdout


def test_without_mpiexec_it_is_one_process(tmp_path):
    pytest.importorskip('sklearn')
    command = [sys.executable, str(SCRIPT), *map(str, QUICK), '-e', '1', '-o', str(tmp_path)]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert accuracy_of(done) > 0.3
    assert 'processes:    1, ' in done.stdout
    assert 'batch:        30 per process, 30 in all' in done.stdout


def test_without_matplotlib_it_says_so_and_goes_on(tmp_path):
    pytest.importorskip('sklearn')
    text = f"""
import runpy, sys
sys.modules['matplotlib'] = None
sys.argv[0] = {str(SCRIPT)!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""
    done = mpiexec(2, text, *QUICK, '-e', 1, '-o', tmp_path)
    assert accuracy_of(done) > 0.3
    assert done.stdout.count('pip install matplotlib') == 1
    assert {path.name for path in tmp_path.iterdir()} == {'log', 'snapshot'}


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--data-dir', 'no/such/folder'), 'MissingDataError: load_images: there is no folder'),
        (('--dataset', 'mnist', '--data-dir', '.'), 'no images in the folder'),
        (('--dataset', 'digits', '--communicator', 'smoke'), 'Unrecognized communicator: "smoke"'),
        (('--dataset', 'digits', '--resume', 'nothing'), 'resume: there is no file nothing'),
    ],
)
def test_bad_input_ends_the_job_with_one_clear_error(tmp_path, flags, message):
    start = time.monotonic()
    done = run(2, *flags, '--out', tmp_path)
    assert done.returncode != 0
    assert message in done.stdout
    assert time.monotonic() - start < 150


def test_a_truncated_file_ends_the_job(tmp_path):
    from mnx.datasets.checksums import STEMS

    for stem in STEMS:
        (tmp_path / stem).write_bytes(bytes.fromhex('00000803 0000ea60 0000001c 0000001c 00'))
    done = run(2, '--data-dir', tmp_path, '--out', tmp_path / 'out')
    assert done.returncode != 0
    assert 'is cut short, expected 47040016 bytes' in done.stdout


def test_a_snapshot_of_another_number_of_processes(tmp_path):
    accuracy_of(run(2, *QUICK, '-e', 1, '-o', tmp_path))
    done = run(3, *QUICK, '-e', 2, '-o', tmp_path, '--resume', tmp_path / 'snapshot')
    assert done.returncode != 0
    assert 'another number of ranks, expected 2 but got 3' in done.stdout


def test_the_script_does_not_ask_who_it_is():
    assert not re.search(r'if .*\brank\b', SCRIPT.read_text())
