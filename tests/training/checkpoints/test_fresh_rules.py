import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from tests.training.checkpoints.halves import Regression, build, resume
from tests.training.checkpoints.training import parameters


class Late(Regression):
    """Its second layer has no size before it is used."""

    def __init__(self):
        super().__init__(np.float64)
        with self.init_scope(), chainer.using_config('dtype', np.float64):
            self.aux = L.Linear(None, 2, initialW=0.5)
        self.add_persistent('uses_it', False)

    def forward(self, x, t):
        loss = super().forward(x, t)
        return loss + F.mean(self.aux(x) ** 2) if self.uses_it else loss


def use_it(trainer):
    if trainer.updater.iteration == 4:
        trainer.updater.get_optimizer('main').target.uses_it = True


@pytest.mark.parametrize('double_buffering', [False, True])
@pytest.mark.parametrize('kind', ['snapshot', 'checkpoint'])
@pytest.mark.parametrize('actual', [chainer.optimizers.MomentumSGD, chainer.optimizers.Adam])
def test_a_parameter_that_is_used_later(comm, shared_path, actual, kind, double_buffering):
    def trainer_of(name, until):
        optimizer = mnx.create_multi_node_optimizer(actual(), comm, double_buffering)
        optimizer.setup(Late())
        return build(comm, shared_path / name, until, np.float64, [use_it], optimizer)

    whole = trainer_of('whole', 7)
    whole.run()
    assert parameters(whole)['/aux/b']
    trainer_of('part', 2).run()
    rest = trainer_of('part', 7)
    resume(kind, rest, comm)
    rest.run()
    assert parameters(rest) == parameters(whole)


@pytest.mark.parametrize('kind', ['snapshot', 'checkpoint'])
def test_before_the_first_update(comm, shared_path, kind):
    whole = build(comm, shared_path / 'whole', 3, np.float64)
    whole.run()
    part = build(comm, shared_path / 'part', 3, np.float64)
    part._start_at = 0  # as if it ran
    (shared_path / 'part').mkdir(exist_ok=True)
    part.get_extension(kind)(part)
    rest = build(comm, shared_path / 'part', 3, np.float64)
    resume(kind, rest, comm)
    rest.run()
    assert parameters(rest) == parameters(whole)
