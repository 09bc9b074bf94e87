from types import SimpleNamespace

import chainer
import chainer.links as L
import pytest

import mnx
from mnx.training.checkpoints import optimizer_names


def trainer_with(optimizer):
    return SimpleNamespace(updater=SimpleNamespace(_optimizers={'main': optimizer}))


def test_what_mnx_wraps_counts(comm):
    plain = chainer.optimizers.Adam().setup(L.Linear(1, 1))
    wrapped = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm)
    state = optimizer_names.capture(trainer_with(plain))
    assert {key: str(value) for key, value in state.items()} == {'mnx/optimizer:main': 'Adam'}
    assert optimizer_names.capture(trainer_with(wrapped)) == state
    optimizer_names.check(trainer_with(wrapped), state)


def test_another_class_is_an_error():
    state = optimizer_names.capture(trainer_with(chainer.optimizers.SGD()))
    with pytest.raises(ValueError, match='optimizer:main was SGD, and here is Adam'):
        optimizer_names.check(trainer_with(chainer.optimizers.Adam()), state)


def test_an_updater_without_optimizers():
    assert optimizer_names.capture(SimpleNamespace(updater=object())) == {}
