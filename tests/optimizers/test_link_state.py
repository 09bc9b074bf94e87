"""What a forward pass has changed in a model besides parameters can be taken back."""

from __future__ import annotations

import chainer
import chainer.links as L
import numpy as np

from mnx.optimizers.link_state import LinkState


class Counting(chainer.Chain):
    """Keeps state of all kinds, some of it in a child."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0
        self.add_persistent('n_kept', 0)
        with self.init_scope():
            self.bn = L.BatchNormalization(2)
            self.lazy = L.BatchNormalization(axis=0)

    def forward(self, x: np.ndarray) -> chainer.Variable:
        self.n_calls += 1
        self.n_kept += 1
        self.new_attribute = x
        return self.lazy(self.bn(x))


def test_everything_but_parameters_is_as_it_was() -> None:
    model = Counting()
    model.bn.avg_mean[:] = [3, 4]
    mean, gamma = model.bn.avg_mean, model.bn.gamma.array
    state = LinkState(model)
    model(np.random.RandomState(0).rand(5, 2).astype('f4'))
    gamma += 1
    assert not np.array_equal(model.bn.avg_mean, [3, 4])
    state.restore()
    assert (model.n_calls, model.n_kept, model.bn.N) == (0, 0, 0)
    assert not hasattr(model, 'new_attribute')
    assert model.lazy.avg_mean is None
    assert model.bn.avg_mean is mean  # the same array, since others may refer to it
    np.testing.assert_array_equal(mean, [3, 4])
    np.testing.assert_array_equal(model.bn.gamma.array, [2, 2])  # parameters are no part of it


def test_it_can_be_restored_again() -> None:
    model = Counting()
    state = LinkState(model)
    for _ in range(2):
        model(np.ones((5, 2), 'f4'))
        state.restore()
        assert model.n_calls == 0
        np.testing.assert_array_equal(model.bn.avg_mean, [0, 0])


def test_registered_names_come_back_too() -> None:
    """A link that was added in the forward pass is not left half registered."""
    model = chainer.Sequential(L.Linear(2, 2))
    state = LinkState(model)
    model[0].add_persistent('late', 1)
    state.restore()
    assert not hasattr(model[0], 'late')
