import io
import json

import chainer
import chainer.datasets as D
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.iterators import SerialIterator
from chainer.training import extensions

from mnx.errors import ArgumentError
from mnx.extensions import on_root


def trainer_for(comm, out):
    x = np.full((4, 1), comm.rank, np.float32)
    iterator = SerialIterator(D.TupleDataset(x, np.zeros(4, np.int32)), 2)
    optimizer = chainer.optimizers.SGD().setup(L.Classifier(L.Linear(1, 2)))
    updater = training.updaters.StandardUpdater(iterator, optimizer)
    return training.Trainer(updater, (2, 'epoch'), out=str(out))


def test_the_extension_itself_on_the_root_only(comm):
    for root in (0, comm.size - 1):
        extension = extensions.LogReport()
        assert (on_root(extension, comm, root) is extension) == (comm.rank == root)


@training.make_extension(trigger=(3, 'iteration'), priority=42)
def decorated(trainer):
    raise AssertionError('called')


@pytest.mark.parametrize(
    ('make', 'name'),
    [
        (extensions.LogReport, 'LogReport'),
        (extensions.ProgressBar, 'ProgressBar'),
        (extensions.observe_lr, '_observe_value'),
        (lambda: decorated, 'decorated'),
    ],
)
def test_the_trainers_are_alike_on_all_ranks(comm, tmp_path, make, name):
    for root in (0, comm.size - 1):
        expected, found = trainer_for(comm, tmp_path), trainer_for(comm, tmp_path)
        expected.extend(make())
        found.extend(on_root(make(), comm, root))
        (a,), (b,) = expected._extensions.items(), found._extensions.items()
        assert a[0] == b[0] == name
        assert a[1].priority == b[1].priority
        assert vars(a[1].trigger) == vars(b[1].trigger)
        assert found.get_extension(name).name == name


def test_names_are_numbered_alike(comm, tmp_path):
    trainer = trainer_for(comm, tmp_path)
    for _ in range(2):
        trainer.extend(on_root(extensions.LogReport(), comm))
    assert list(trainer._extensions) == ['LogReport', 'LogReport_1']


def test_reports_of_a_real_training_come_from_one_rank(comm, shared_path):
    text, out = io.StringIO(), shared_path / f'{comm.rank}'
    trainer = trainer_for(comm, out)
    for extension in (
        extensions.LogReport(),
        extensions.PrintReport(['epoch', 'main/loss'], out=text),
    ):
        trainer.extend(on_root(extension, comm, comm.size - 1))
    trainer.run()
    printed = text.getvalue()
    at_root = comm.rank == comm.size - 1
    assert ('main/loss' in printed) == at_root
    assert [path.name for path in out.iterdir()] == (['log'] if at_root else [])
    if at_root:
        assert [entry['epoch'] for entry in json.loads((out / 'log').read_text())] == [1, 2]


def test_plots_come_from_one_rank(comm, tmp_path):
    pytest.importorskip('matplotlib').use('Agg')
    trainer = trainer_for(comm, tmp_path)
    trainer.extend(on_root(extensions.PlotReport(['main/loss'], filename='loss.png'), comm))
    trainer.run()
    assert (tmp_path / 'loss.png').exists() == (comm.rank == 0)


def test_any_function(comm, capsys):
    assert on_root(lambda x: 2 * x, comm)(3) == (6 if comm.rank == 0 else None)
    on_root(print, comm)('hello', end='!')
    assert capsys.readouterr().out == ('hello!' if comm.rank == 0 else '')


@pytest.mark.parametrize('root', [-1, 99])
def test_a_root_out_of_range(comm, root):
    with pytest.raises(ArgumentError, match='on_root: root is not a rank'):
        on_root(print, comm, root)
