"""A small training on any number of ranks that tells which examples it has seen."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import chainer
import chainer.datasets as D
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import training
from chainer.iterators import SerialIterator
from chainer.training import extensions

import mnx
from mnx.extensions import Checkpoint, create_multi_node_evaluator, on_root

N = 48


class Net(chainer.Chain):
    """Draws random numbers, and has running statistics of its own on each rank."""

    def __init__(self, n_units=5):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(3, n_units)
            self.bn = L.BatchNormalization(n_units)
            self.l2 = L.Linear(n_units, 3)

    def forward(self, x):
        return self.l2(F.dropout(self.bn(F.relu(self.l1(x))), 0.3))


def whole(n=N):
    source = np.random.RandomState(3)
    x = source.rand(n, 3).astype(np.float32)
    return D.TupleDataset(x, source.randint(0, 3, n).astype(np.int32), np.arange(n))


class Seen:
    """Notes the number of each example, drops it and draws a random number."""

    def __init__(self):
        self.numbers = []

    def __call__(self, example):
        x, t, number = example
        self.numbers.append(int(number))
        return x + np.float32(np.random.normal(0, 0.1) + random.gauss(0, 0.1)), t


def build(
    comm: Any,
    out: Path,
    *,
    until: Any = (3, 'epoch'),
    batch_size: int = 2,
    seed: int = 0,
    n: int = N,
    n_units: int = 5,
    scatter_seed: int | None = 1,
    shuffle: bool | None = None,
    every: Any = (1, 'iteration'),
    optimizer: Any = None,
    **options: Any,
) -> Any:
    """Return a trainer with a `checkpoint` and a list of the numbers it has `seen`."""
    np.random.seed(seed + comm.rank)
    random.seed(seed + comm.rank)
    data = mnx.scatter_dataset(
        whole(n) if comm.rank == 0 else None, comm, shuffle=True, seed=scatter_seed
    )
    seen = Seen()
    iterator = SerialIterator(D.TransformDataset(data, seen), batch_size, shuffle=shuffle)
    model = L.Classifier(Net(n_units))
    actual = chainer.optimizers.Adam() if optimizer is None else optimizer
    optimizer = mnx.create_multi_node_optimizer(actual, comm).setup(model)
    updater = training.updaters.StandardUpdater(iterator, optimizer)
    trainer = training.Trainer(updater, until, out=str(out))
    test = SerialIterator(D.TransformDataset(data, Seen()), 5, repeat=False, shuffle=False)
    trainer.extend(create_multi_node_evaluator(extensions.Evaluator(test, model), comm))
    rate = 'alpha' if isinstance(actual, chainer.optimizers.Adam) else 'lr'
    trainer.extend(extensions.ExponentialShift(rate, 0.7), trigger=(1, 'epoch'))
    trainer.extend(on_root(extensions.LogReport(trigger=(5, 'iteration')), comm))
    trainer.checkpoint = Checkpoint(comm, **options)
    trainer.extend(trainer.checkpoint, trigger=every)
    trainer.seen = seen.numbers
    return trainer


def parameters(trainer):
    """Return all that is trained, as bytes."""
    model = trainer.updater.get_optimizer('main').target
    found: dict[str, Any] = {}
    for path, link in model.namedlinks():
        found.update({f'{path}/{name}': getattr(link, name) for name in link._persistent})
    for name, p in model.namedparams():
        found[name] = p.array
        found.update({f'{name}/{key}': x for key, x in (p.update_rule.state or {}).items()})
    return {name: np.asarray(value).tobytes() for name, value in found.items()}


def sets_in(out: Path) -> list[str]:
    return sorted(path.name for path in (out / 'checkpoint').iterdir())
