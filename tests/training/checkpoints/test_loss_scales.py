from types import SimpleNamespace

import chainer
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.extensions import resume, snapshot
from mnx.training.checkpoints import loss_scales
from tests.training.checkpoints.training import build, parameters


def trainer_with(optimizer):
    return SimpleNamespace(updater=SimpleNamespace(_optimizers={'main': optimizer}))


def adapting(scale=None):
    optimizer = chainer.optimizers.Adam().setup(L.Linear(1, 1))
    optimizer.loss_scaling(interval=7, scale=scale)
    return optimizer


def test_what_adapts_is_saved(comm):
    optimizer = adapting()
    optimizer._loss_scale, optimizer._loss_scaling_isnan_ever = 44.5, True
    state = loss_scales.capture(trainer_with(mnx.create_multi_node_optimizer(optimizer, comm)))
    fresh, fixed = adapting(), adapting(scale=3.0)
    for other in (fresh, fixed):
        loss_scales.restore(trainer_with(other), state)
    assert (fresh._loss_scale, fresh._loss_scaling_isnan_ever) == (44.5, True)
    assert fixed._loss_scale == 3.0
    loss_scales.restore(trainer_with(fresh), {})  # of a file from before
    assert fresh._loss_scale == 44.5


def test_what_does_not_adapt_is_not():
    for optimizer in (adapting(scale=3.0), chainer.optimizers.SGD()):
        assert loss_scales.capture(trainer_with(optimizer)) == {}
    assert loss_scales.capture(SimpleNamespace(updater=object())) == {}


@pytest.mark.filterwarnings('ignore')  # the overflow, and Chainer telling of it
@pytest.mark.parametrize('kind', ['snapshot', 'checkpoint'])
def test_a_resumed_training_has_the_scale_and_the_bits(comm, shared_path, kind):
    def trainer_of(name, until, seed=0):
        optimizer = chainer.optimizers.Adam()
        optimizer.loss_scaling(interval=3)
        trainer = build(
            comm, shared_path / name, until=(until, 'iteration'), seed=seed, optimizer=optimizer
        )
        trainer.extend(snapshot(comm, 'snapshot'), trigger=(1, 'iteration'))
        trainer.extend(overflow, trigger=(2, 'iteration'), priority=1000)
        return trainer

    def overflow(trainer):
        """Twice: from then on the scale is no power of two."""
        values = {2: np.inf, 4: 0.1}
        if trainer.updater.iteration in values:
            weight = trainer.updater.get_optimizer('main').target.predictor.l2.W
            weight.array[...] = values[trainer.updater.iteration]

    whole = trainer_of('whole', 8)
    whole.run()
    trainer_of('part', 6).run()
    rest = trainer_of('part', 8, seed=99)
    if kind == 'snapshot':
        resume(shared_path / 'part' / 'snapshot', rest, comm)
    else:
        rest.checkpoint.resume(rest)
    rest.run()
    scales = [t.updater.get_optimizer('main')._loss_scale for t in (rest, whole)]
    assert scales[0] == scales[1]
    assert np.log2(scales[1]) % 1 != 0
    assert parameters(rest) == parameters(whole)
