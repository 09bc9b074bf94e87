import numpy as np
import pytest

from mnx.optimizers import masters
from tests.training.checkpoints.halves import build, resume
from tests.training.checkpoints.training import parameters


def copies(trainer):
    found = masters.capture(trainer.updater.get_optimizer('main').actual_optimizer)
    return {name: copy.tobytes() for name, copy in found.items()}


@pytest.mark.parametrize('kind', ['snapshot', 'checkpoint'])
def test_a_resumed_training_has_the_digits_that_float16_has_not(comm, shared_path, kind):
    whole = build(comm, shared_path / 'whole', 12, np.float16)
    whole.run()
    build(comm, shared_path / 'part', 7, np.float16).run()
    rest = build(comm, shared_path / 'part', 12, np.float16)
    resume(kind, rest, comm)
    rest.run()
    assert sorted(copies(rest)) == ['/line/W', '/line/b']
    assert copies(rest) == copies(whole)
    assert parameters(rest) == parameters(whole)


def test_going_back_in_the_same_process(comm, shared_path):
    trainer = build(comm, shared_path, 3, np.float16)
    trainer.run()
    then = copies(trainer)
    for _ in range(2):
        trainer.updater.update()
    assert copies(trainer) != then
    resume('checkpoint', trainer, comm)
    assert copies(trainer) == then
