from types import SimpleNamespace

import chainer
import numpy as np
import pytest
from chainer.training import extensions

from mnx.training.checkpoints import schedules
from tests.training.checkpoints.halves import build, resume
from tests.training.checkpoints.training import parameters

KINDS = {
    'warm-up': lambda: [extensions.WarmupShift('lr', 0.001, 10, 0.1)],
    'after the warm-up': lambda: [extensions.WarmupShift('lr', 0.001, 4, 0.1)],
    'several steps': lambda: [extensions.MultistepShift('lr', 0.5, [2, 5, 9], 0.1)],
    'exponential': lambda: [extensions.ExponentialShift('lr', 0.9)],
    'two of them': lambda: [
        extensions.WarmupShift('lr', 0.001, 10, 0.1),
        Late('lr', 0.9, 0.05),
    ],
    'two the other way': lambda: [
        Late('lr', 0.9, 0.05),
        extensions.WarmupShift('lr', 0.001, 10, 0.1),
    ],
}


class Late(extensions.ExponentialShift):
    """Begins when the warm-up has ended."""

    name = 'late'

    def __call__(self, trainer):
        if trainer.updater.iteration > 10:
            super().__call__(trainer)


@pytest.mark.parametrize('kind', ['snapshot', 'checkpoint'])
@pytest.mark.parametrize('schedule', KINDS)
def test_a_resumed_training_goes_on_with_its_rate(comm, shared_path, kind, schedule):
    def trainer_of(name, until):
        return build(comm, shared_path / name, until, np.float64, KINDS[schedule]())

    whole = trainer_of('whole', 12)
    whole.run()
    trainer_of('part', 6).run()
    rest = trainer_of('part', 12)
    resume(kind, rest, comm)
    rest.run()
    assert parameters(rest) == parameters(whole)
    rates = [t.updater.get_optimizer('main').lr for t in (rest, whole)]
    assert rates[0] == rates[1]


def test_only_the_beginning_is_another():
    optimizer = chainer.optimizers.SGD(0.5)
    trainer = SimpleNamespace(
        _extensions={
            'own': SimpleNamespace(extension=print),
            'warm': SimpleNamespace(extension=extensions.WarmupShift('lr', 0.1, 9, 1)),
        },
        updater=SimpleNamespace(get_optimizer={'main': optimizer}.get),
    )
    state = schedules.capture(trainer)
    assert {key: value.item() for key, value in state.items()} == {'mnx/schedule:warm': 0.5}
    warm = trainer._extensions['warm'].extension
    schedules.restore(trainer, {})  # of a file from before
    warm.initialize(trainer)
    assert optimizer.lr == 0.1
    schedules.restore(trainer, state)
    schedules.restore(trainer, state)
    assert optimizer.lr == 0.1
    warm.initialize(trainer)
    assert optimizer.lr == 0.5
    warm.initialize(trainer)
    assert optimizer.lr == 0.1
