import chainer
import numpy as np
import pytest
from chainer.optimizer_hooks import GradientNoise

import mnx
from mnx.gradients.injection import noises_of
from tests.training.checkpoints.halves import Regression, build, resume
from tests.training.checkpoints.training import parameters


@pytest.mark.parametrize('kind', ['snapshot', 'checkpoint'])
def test_a_resumed_training_goes_on_with_its_noise(comm, shared_path, kind):
    def trainer_of(name, until, seed=0):
        np.random.seed(seed + comm.rank)
        model = Regression(np.float64)
        mnx.inject_allreduce(model, comm)
        optimizer = chainer.optimizers.MomentumSGD(0.01).setup(model)
        optimizer.add_hook(GradientNoise(0.3))
        return build(comm, shared_path / name, until, np.float64, optimizer=optimizer)

    whole = trainer_of('whole', 9)
    whole.run()
    trainer_of('part', 5).run()
    rest = trainer_of('part', 9, seed=50)
    resume(kind, rest, comm)
    rest.run()
    assert parameters(rest) == parameters(whole)
    (noise,) = noises_of(rest.updater.get_optimizer('main').target).values()
    assert noise.calls == (18 if comm.size > 1 else 0)
