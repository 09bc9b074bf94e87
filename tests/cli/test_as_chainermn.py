"""An old script as it is: `import chainermn` gives mnx, and what mnx lacks says so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import mnx, needs_extra
from tests.launching import starts_jobs

pytestmark = [starts_jobs, needs_extra]

SCRIPTS = Path(__file__).with_name('scripts')


def run(n: int, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    path = folder / 'script.py'
    path.write_text(text)
    return mnx(n, 'run', '--as-chainermn', path)


def weights(n: int, *args: object) -> np.ndarray:
    job = mnx(n, 'run', '--as-chainermn', SCRIPTS / 'train_alike.py', *args)
    assert job.returncode == 0, job.stdout
    (line,) = re.findall('^weights (.*)$', job.stdout, re.MULTILINE)
    return np.array(line.split(), np.float64)


def test_a_training_script_gives_the_same_on_any_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    alone, longer = weights(1), weights(1, '--epoch', 4)
    np.testing.assert_allclose(weights(2), alone, rtol=0, atol=1e-12)
    assert abs(longer - alone).max() > 1e-3  # the option arrives, and the weights move


def test_what_is_deprecated_is_said_by_one_rank(tmp_path: Path):
    script = """
import warnings
import chainer.links as L
import chainermn
from chainermn.datasets.scatter import get_epoch_trigger

comm = chainermn.create_communicator('naive')
get_epoch_trigger(1, [0, 1], 1, comm)
model = L.Linear(1, 1)
model.cleargrads()
comm.allreduce_grad(model)
chainermn.create_multi_node_checkpointer('name', comm)
warnings.warn(f'own of {comm.rank}', DeprecationWarning)
"""
    job = run(2, tmp_path, script)
    assert job.returncode == 0, job.stdout
    for name in ('get_epoch_trigger', 'allreduce_grad', 'create_multi_node_checkpointer'):
        assert job.stdout.count(f'{name} is deprecated') == 1, job.stdout
    assert all(f'own of {rank}' in job.stdout for rank in range(2))  # the script's are its own


def train_mnist(n: int, epochs: int, out: Path) -> None:
    job = mnx(n, 'run', '--as-chainermn', SCRIPTS / 'train_mnist.py', '-e', epochs, '-o', out)
    assert job.returncode == 0, job.stdout
    (words,) = re.findall('^iterations (.*)$', job.stdout, re.MULTILINE)
    iterations, _, t, _, accuracy = words.split()
    assert iterations == t == str(400 // 20 // n * epochs)  # none was spent on a broadcast
    assert float(accuracy) > 0.8
    assert job.stdout.count("'pure_nccl' needs NCCL") <= 1


@pytest.mark.parametrize('n', [1, 2])
def test_data_parallel_training_with_all_that_there_was_for_it(n: int, tmp_path: Path):
    train_mnist(n, 2, tmp_path / 'result')
    files = sorted(path.name for path in (tmp_path / 'result').iterdir())
    assert files == ['log', *(f'snapshot_iter_{400 // 20 // n * e}.0' for e in (1, 2))]
    if n == 2:  # resumed on both ranks, from one file
        (tmp_path / 'result' / 'snapshot_iter_10.0').unlink()
        train_mnist(n, 3, tmp_path / 'result')
        files = sorted(path.name for path in (tmp_path / 'result').iterdir())
        assert files == ['log', 'snapshot_iter_20.0', 'snapshot_iter_30.0']


@pytest.mark.parametrize('n', [1, 2])
def test_model_parallel_training(n: int):
    job = mnx(n, 'run', '--as-chainermn', SCRIPTS / 'train_mnist_model_parallel.py')
    assert job.returncode == 0, job.stdout
    (words,) = re.findall('^accuracy (.*)$', job.stdout, re.MULTILINE)
    accuracy, _, epoch = words.split()
    assert float(accuracy) > 0.8
    assert epoch == '6'  # as rank 0's iterator tells


def test_processes_that_read_for_it_have_the_same_names():
    job = mnx(2, 'run', '--as-chainermn', SCRIPTS / 'read_by_processes.py')
    assert f'examples {" ".join(map(str, range(16)))}\n' in job.stdout, job.stdout
    assert 'kinds mnx.cli.as_chainermn\n' in job.stdout


def test_pure_nccl_without_gpus_becomes_auto_and_says_so_once(tmp_path: Path):
    job = run(
        2,
        tmp_path,
        'import chainermn\n'
        "for name in ('pure_nccl', 'pure_nccl'):\n"
        '    comm = chainermn.create_communicator(name)\n'
        'print(comm.name, comm.rank)\n',
    )
    assert job.returncode == 0, job.stdout
    if 'nccl 0' in job.stdout:
        pytest.skip('here are GPUs')
    assert sorted(re.findall(r'^shared_memory \d$', job.stdout, re.MULTILINE)) == [
        'shared_memory 0',
        'shared_memory 1',
    ]
    assert job.stdout.count("'pure_nccl' needs NCCL") == 1


def test_names_are_those_of_mnx(tmp_path: Path):
    job = run(
        1,
        tmp_path,
        'import chainer, chainermn, mnx, sys\n'
        'import chainermn.links as links\n'
        'from chainermn import scatter_index\n'
        'from chainermn.functions import alltoall\n'
        'from chainermn.communicators.pure_nccl_communicator import PureNcclCommunicator\n'
        'from chainermn import nccl\n'
        'assert links.MultiNodeChainList is mnx.MultiNodeChainList\n'
        'assert chainermn.MultiNodeChainList is mnx.MultiNodeChainList\n'
        'assert scatter_index is mnx.scatter_index and alltoall is mnx.functions.alltoall\n'
        'assert chainermn.__version__ == chainer.__version__\n'
        'assert PureNcclCommunicator.name == "nccl" and nccl._available in (True, False)\n'
        'assert isinstance(chainermn.create_communicator("naive"), chainermn.CommunicatorBase)\n'
        'ours = [m for name, m in sys.modules.items() if name.split(".")[0] == "chainermn"]\n'
        'assert not any(hasattr(m, "__file__") for m in ours), ours\n'
        'print("all well")\n',
    )
    assert 'all well' in job.stdout, job.stdout


ABSENT = {
    'from chainermn.links import Nonsense': 'ImportError',
    'from chainermn import nonsense': 'ImportError',
    'import chainermn.nonsense': 'ImportError',
    'import chainermn; chainermn.nonsense': 'AttributeError',
    'import chainermn; chainermn.links.Nonsense': 'AttributeError',
}


def test_what_mnx_lacks_says_so(tmp_path: Path):
    text = 'import chainermn\nassert not hasattr(chainermn, "nonsense")\n'
    for code in ABSENT:
        text += f'try:\n    {code}\nexcept Exception as e:\n    print(type(e).__name__, e)\n'
    lines = run(1, tmp_path, text).stdout.splitlines()
    told = [line for line in lines if 'mnx has no chainermn.' in line]
    assert [line.split()[0] for line in told] == list(ABSENT.values()), lines


def test_without_the_option_chainermn_is_not_touched(tmp_path: Path):
    path = tmp_path / 'script.py'
    path.write_text(
        'import sys\n'
        'print([f for f in sys.meta_path if type(f).__module__ == "mnx.cli.as_chainermn"])\n'
    )
    assert mnx(1, 'run', path).stdout.splitlines() == ['[]']
