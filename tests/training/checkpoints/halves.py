"""A training in float16, of whatever schedules its learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import training
from chainer.iterators import SerialIterator

import mnx
from mnx.extensions import Checkpoint, snapshot


class Regression(chainer.Chain):
    """A line through points, in one dtype."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', dtype):
            self.line = L.Linear(3, 2, initialW=np.linspace(-1, 1, 6).reshape(2, 3))

    def forward(self, x: Any, t: Any) -> Any:
        return F.mean_squared_error(self.line(x), t)


def build(
    comm: Any, out: Path, until: int, dtype: Any, extensions: Any = (), optimizer: Any = None
) -> Any:
    """Return a trainer that takes a snapshot and a checkpoint in each iteration."""
    source = np.random.RandomState(comm.rank)
    x, t = source.rand(12, 3).astype(dtype), source.rand(12, 2).astype(dtype)
    if optimizer is None:
        optimizer = chainer.optimizers.MomentumSGD(0.003)
        optimizer.use_fp32_update()
    if optimizer.target is None:
        optimizer = mnx.create_multi_node_optimizer(optimizer, comm).setup(Regression(dtype))
    iterator = SerialIterator(chainer.datasets.TupleDataset(x, t), 4, shuffle=False)
    updater = training.updaters.StandardUpdater(iterator, optimizer)
    trainer = training.Trainer(updater, (until, 'iteration'), out=str(out))
    for extension in extensions:
        trainer.extend(extension, trigger=(1, 'iteration'))
    trainer.checkpoint = Checkpoint(comm)
    trainer.extend(trainer.checkpoint, trigger=(1, 'iteration'))
    trainer.extend(snapshot(comm, 'snapshot'), trigger=(1, 'iteration'))
    return trainer


def resume(kind: str, trainer: Any, comm: Any) -> None:
    """Go on from the newest one."""
    if kind == 'snapshot':
        mnx.extensions.resume(Path(trainer.out) / 'snapshot', trainer, comm)
    else:
        trainer.checkpoint.resume(trainer)
