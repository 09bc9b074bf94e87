import chainer
import numpy as np
import pytest

from tests.training.checkpoints.halves import build, resume
from tests.training.checkpoints.training import parameters


@pytest.mark.parametrize('kind', ['snapshot', 'checkpoint'])
def test_a_resumed_training_has_its_powers(comm, shared_path, kind):
    def trainer_of(name, until):
        optimizer = chainer.optimizers.MSVAG()
        return build(comm, shared_path / name, until, np.float64, optimizer=optimizer)

    def powers(trainer):
        model = trainer.updater.get_optimizer('main').target
        return {name: param.update_rule.beta_power for name, param in model.namedparams()}

    whole = trainer_of('whole', 9)
    whole.run()
    trainer_of('part', 5).run()
    rest = trainer_of('part', 9)
    resume(kind, rest, comm)
    rest.run()
    assert powers(rest) == powers(whole) == {name: pytest.approx(0.9**10) for name in powers(whole)}
    assert parameters(rest) == parameters(whole)
