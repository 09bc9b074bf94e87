"""Chainer's own training, one process alone, with every standard extension."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.training import extensions

from tests.launching import starts_jobs

pytestmark = starts_jobs


EPOCHS = 4


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'Agg')


class Net(chainer.Chain):
    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.hidden = L.Linear(2, 16)
            self.norm = L.BatchNormalization(16)
            self.out = L.Linear(16, 3)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.hidden(x))))


def three_blobs(n: int, seed: int) -> chainer.datasets.TupleDataset:
    """Three well separated clusters: a few epochs tell them apart."""
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=n).astype(np.int32)
    centres = np.array([[2, 0], [-2, 2], [-2, -2]], dtype=np.float32)
    points = centres[labels] + 0.5 * random.standard_normal((n, 2), dtype=np.float32)
    return chainer.datasets.TupleDataset(points, labels)


def build(out: Path, epochs: int = EPOCHS, screen: io.StringIO | None = None) -> training.Trainer:
    np.random.seed(0)
    train = chainer.iterators.SerialIterator(three_blobs(96, 1), 16, shuffle=False)
    test = chainer.iterators.SerialIterator(three_blobs(30, 2), 16, repeat=False, shuffle=False)
    model = L.Classifier(Net())
    optimizer = chainer.optimizers.MomentumSGD(lr=0.1).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-4))
    optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(10))
    updater = training.StandardUpdater(train, optimizer)
    trainer = training.Trainer(updater, (epochs, 'epoch'), out=str(out))
    for extension in standard_extensions(test, model, screen or io.StringIO()):
        trainer.extend(extension)
    snapshot = extensions.snapshot(n_retains=1, autoload=True)
    trainer.extend(snapshot, trigger=(1, 'epoch'))
    return trainer


def standard_extensions(test, model, screen):
    return [
        extensions.Evaluator(test, model),
        extensions.dump_graph('main/loss'),
        extensions.ExponentialShift('lr', 0.9),
        extensions.FailOnNonNumber(),
        extensions.observe_lr(),
        extensions.LogReport(),
        extensions.ParameterStatistics(model.predictor),
        extensions.PrintReport(
            ['epoch', 'main/loss', 'validation/main/accuracy', 'lr'], out=screen
        ),
        extensions.ProgressBar(update_interval=1, out=screen),
    ]


def run(trainer: training.Trainer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        trainer.run()


def parameters(trainer: training.Trainer) -> dict[str, np.ndarray]:
    model = trainer.updater.get_optimizer('main').target
    return {name: param.array for name, param in model.namedparams()}


def test_trains_with_every_standard_extension(tmp_path):
    pytest.importorskip('matplotlib')
    screen = io.StringIO()
    trainer = build(tmp_path, screen=screen)
    losses = ['main/loss', 'validation/main/loss']
    trainer.extend(extensions.PlotReport(losses, 'epoch', filename='loss.png'))
    model = trainer.updater.get_optimizer('main').target
    trainer.extend(extensions.VariableStatisticsPlot(model, filename='statistics.png'))
    run(trainer)
    log = json.loads((tmp_path / 'log').read_text())
    assert [entry['epoch'] for entry in log] == [1, 2, 3, 4]
    assert log[-1]['validation/main/accuracy'] > 0.95
    assert log[-1]['main/loss'] < log[0]['main/loss']
    assert log[-1]['lr'] < log[0]['lr'] < 0.1
    assert 'validation/main/accuracy' in screen.getvalue()
    made = {path.name for path in tmp_path.iterdir()}
    assert {'cg.dot', 'log', 'loss.png', 'statistics.png', 'snapshot_iter_24'} <= made


def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = build(tmp_path / 'whole')
    half, rest = (build(tmp_path / 'parts', epochs) for epochs in (EPOCHS // 2, EPOCHS))
    run(whole)
    run(half)
    chainer.serializers.load_npz(tmp_path / 'parts' / 'snapshot_iter_12', rest)
    run(rest)
    assert rest.updater.iteration == whole.updater.iteration
    for name, array in parameters(whole).items():
        np.testing.assert_array_equal(parameters(rest)[name], array)


def test_snapshot_is_found(tmp_path):
    run(build(tmp_path, epochs=2))
    rest = build(tmp_path, epochs=2)
    run(rest)  # nothing is left to do
    assert rest.updater.iteration == 12


@pytest.mark.parametrize('kind', ['npz', 'hdf5'])
def test_trainer_is_saved_and_loaded(kind, tmp_path):
    """Also to HDF5, where the log of a LogReport could not be written."""
    if kind == 'hdf5':
        pytest.importorskip('h5py')
    save = getattr(chainer.serializers, f'save_{kind}')
    load = getattr(chainer.serializers, f'load_{kind}')
    trainer = build(tmp_path / 'first', epochs=2)
    run(trainer)
    save(tmp_path / f'trainer.{kind}', trainer)
    other = build(tmp_path / 'other')
    load(tmp_path / f'trainer.{kind}', other)
    assert other.updater.iteration == trainer.updater.iteration
    for name, array in parameters(trainer).items():
        np.testing.assert_array_equal(parameters(other)[name], array)
    run(other)
    log = json.loads((tmp_path / 'other' / 'log').read_text())
    assert [entry['epoch'] for entry in log] == [1, 2, 3, 4]
