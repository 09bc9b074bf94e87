"""Loading that changes nothing, and refuses what loading would have taken wrongly."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.iterators import SerialIterator
from chainer.serializers import NpzDeserializer
from chainer.training import extensions

from mnx.training import snapshot
from mnx.training.checkpoints.rehearsal import Rehearsal, rehearse
from mnx.training.snapshot import State
from tests.launching import alone

pytestmark = alone

W = 'updater/model:main/l/W'


def build(fill: float) -> Any:
    """Return a trainer that has made one step."""
    model = chainer.Chain(l=L.Linear(3, 2, initialW=fill))
    optimizer = chainer.optimizers.MomentumSGD().setup(model)
    for param in model.params():
        param.grad = np.full_like(param.array, fill)
    optimizer.update()
    iterator = SerialIterator(list(range(5)), 2, shuffle=False)
    updater = training.updaters.StandardUpdater(iterator, optimizer)
    trainer = training.Trainer(updater, (5, 'iteration'))
    trainer._start_at = 0
    trainer.extend(extensions.LinearShift('lr', (fill, 0), (0, 10)))
    return trainer


def saved(trainer: Any, steps: int = 2) -> State:
    for _ in range(steps):
        trainer.updater.get_iterator('main').next()
    trainer.updater.iteration = steps
    return snapshot.capture(trainer, 0)


def trained(trainer: Any) -> dict[str, Any]:
    """Return all that stands for the training: it must not change."""
    state = snapshot.capture(trainer, 0)
    return {k: v.tolist() for k, v in state.items() if k.startswith('updater/')}


def test_what_fits_passes_and_changes_nothing() -> None:
    state, trainer = saved(build(1)), build(2)
    before = trained(trainer)
    rehearse(trainer, state)
    assert trained(trainer) == before
    NpzDeserializer(state).load(trainer)
    assert trained(trainer) == {k: v.tolist() for k, v in state.items() if k in before} != before


def without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


DAMAGES: dict[str, tuple[Any, type[Exception], str]] = {
    'a missing parameter': (lambda s: without(s, W), KeyError, W),
    'a missing state': (
        lambda s: without(s, 'updater/optimizer:main/l/b/v'), KeyError, 'optimizer:main/l/b/v',
    ),
    'a missing position': (
        lambda s: without(s, 'updater/iterator:main/current_position'), KeyError, 'position',
    ),
    'a missing iteration': (lambda s: without(s, 'updater/iteration'), KeyError, 'iteration'),
    'another shape': (
        lambda s: {**s, W: np.zeros((2, 4), 'f4')}, ValueError,
        r'l/W has shape \(2, 4\), and here \(2, 3\)',
    ),
    'a shape that would be broadcast': (
        lambda s: {**s, W: np.zeros((1, 3), 'f4')}, ValueError, r'shape \(1, 3\), and here \(2, 3',
    ),
    'another dtype': (
        lambda s: {**s, W: np.zeros((2, 3))}, ValueError, 'l/W has dtype float64, and here float32',
    ),
    'a parameter too many': (
        lambda s: {**s, 'updater/model:main/m/W': s[W]}, ValueError,
        'updater/model:main/m/W was saved, and is nothing here',
    ),
    'another optimizer': (
        lambda s: {**s, 'mnx/optimizer:main': np.asarray('Adam')}, ValueError,
        'optimizer:main was Adam, and here is MomentumSGD',
    ),
    'a missing extension': (
        lambda s: without(s, 'extensions/LinearShift/_t'), KeyError, 'LinearShift/_t',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', DAMAGES)
def test_what_does_not_fit(name: str) -> None:
    damage, kind, text = DAMAGES[name]
    trainer = build(2)
    before = trained(trainer)
    with pytest.raises(kind, match=text):
        rehearse(trainer, damage(saved(build(1))))
    assert trained(trainer) == before


def test_a_parameter_without_values_takes_any() -> None:
    """It gets its size from what is loaded."""
    state = saved(build(1))
    trainer = build(2)
    link = trainer.updater.get_optimizer('main').target.l
    link.W = chainer.Parameter()
    rehearse(trainer, state)
    assert link.W.array is None


def test_a_value_that_was_none_is_not_compared() -> None:
    """It stands for a parameter without values, and loads as it does in Chainer."""
    found = Rehearsal({'a/x': np.asarray(None)}, 'a/')
    x = np.ones(3)
    assert found('x', x) is x


def test_an_array_that_is_rehearsed_keeps_its_values() -> None:
    x = np.ones(3)
    assert Rehearsal({'a/x': np.zeros(3)}, 'a/')('x', x) is x
    np.testing.assert_array_equal(x, np.ones(3))


def test_only_of_models_all_must_be_read() -> None:
    rehearsal = Rehearsal({'updater/model:main/x': np.zeros(2), 'mnx/random': np.asarray('')})
    with pytest.raises(ValueError, match='updater/model:main/x was saved'):
        rehearsal.check_all_read()
    rehearsal['updater']['model:main']('x', np.ones(2))
    rehearsal.check_all_read()


def test_an_extension_gets_what_was_saved_of_it() -> None:
    """It may make something else of it, as of JSON: only so its errors show."""
    state, trainer = saved(build(1)), build(2)
    rehearse(trainer, {**state, 'extensions/LinearShift/_t': np.asarray(5)})
    assert trainer.get_extension('LinearShift')._t == 5
