"""Models and optimizers made equal, and told apart."""

from __future__ import annotations

from collections.abc import Callable

import chainer
import chainer.links as L
import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import MismatchError
from mnx.optimizers.replicate import (
    InitializeOnce,
    free_if_used,
    is_replicated,
    replicate_model,
    replicate_parameters,
)


def trained(n_steps: int = 2) -> chainer.Optimizer:
    """Return an Adam with state whose model is the same on all ranks."""
    rng = np.random.RandomState(4)
    model = chainer.Sequential(L.Linear(3, 2, initialW=rng.rand(2, 3)), L.BatchNormalization(2))
    optimizer = chainer.optimizers.Adam().setup(model)
    for _ in range(n_steps):
        for param in model.params():
            param.grad = np.ones_like(param.array)
        optimizer.update()
    return optimizer


def change_parameter(optimizer: chainer.Optimizer) -> None:
    optimizer.target[0].W.array[1, 2] += 1e-7


def change_state(optimizer: chainer.Optimizer) -> None:
    optimizer.target[0].W.update_rule.state['v'][0, 0] *= 2


def change_time(optimizer: chainer.Optimizer) -> None:
    optimizer.t += 1


def change_statistics(optimizer: chainer.Optimizer) -> None:
    optimizer.target[1].avg_mean += 1


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize(
    ('change', 'shows'),
    [
        (change_parameter, True),
        (change_state, True),
        (change_time, True),
        (change_statistics, False),
    ],
)
def test_what_makes_ranks_differ(
    comm: Communicator, change: Callable[[chainer.Optimizer], None], shows: bool
) -> None:
    optimizer = trained()
    assert is_replicated(optimizer, comm)
    if comm.rank == comm.size - 1:
        change(optimizer)
    assert is_replicated(optimizer, comm) != shows


def test_each_parameter_comes_from_the_first_rank_that_has_it(comm: Communicator) -> None:
    model = chainer.Sequential(*(L.Linear(None, 2) for _ in range(comm.size + 1)))
    for i in range(comm.rank, comm.size):  # rank 0 has all but the last, rank 1 the second to ...
        model[comm.size - 1 - i].W.initialize((2, 3))
        model[comm.size - 1 - i].W.array[...] = comm.rank
    changed = replicate_parameters(model, comm)
    assert changed == (comm.size > 1)
    for i in range(comm.size):
        np.testing.assert_array_equal(model[i].W.array, np.zeros((2, 3)))
    assert model[comm.size].W.array is None


@pytest.mark.needs_ranks(2)
def test_a_parameter_that_only_the_last_rank_has(comm: Communicator) -> None:
    model = L.Linear(None, 2)
    if comm.rank == comm.size - 1:
        model.W.initialize((2, 3))
        model.W.array[...] = 7
    replicate_parameters(model, comm)
    np.testing.assert_array_equal(model.W.array, np.full((2, 3), 7))


@pytest.mark.needs_ranks(2)
def test_a_parameter_more_is_an_error_on_all(comm: Communicator) -> None:
    model = L.Linear(3, 2, nobias=comm.rank == 0)
    with pytest.raises(MismatchError, match=r'/b is not in the model of rank\(s\) \[0\]|same'):
        replicate_parameters(model, comm)


def test_persistent_values_of_all_kinds(comm: Communicator) -> None:
    model = L.BatchNormalization(2)
    model.add_persistent('word', f'rank {comm.rank}')
    model.add_persistent('late', np.ones(3) if comm.rank == 0 else None)
    mean = model.avg_mean
    mean[:] = comm.rank + 1
    model.N = comm.rank + 5
    replicate_model(model, comm)
    assert (model.word, model.N) == ('rank 0', 5)
    np.testing.assert_array_equal(model.late, np.ones(3))
    assert model.avg_mean is mean
    np.testing.assert_array_equal(mean, [1, 1])


def test_initialize_once() -> None:
    param = chainer.Parameter(chainer.initializers.Constant(3))
    param.initialize = InitializeOnce(param)
    param.initialize((2,))
    param.array[:] = 5
    param.initialize((2,))
    np.testing.assert_array_equal(param.array, [5, 5])
    param.initialize((3,))  # another shape is asked for on purpose
    np.testing.assert_array_equal(param.array, [3, 3, 3])
    param.array[:] = 5
    param.cleargrad()
    assert not free_if_used(param)  # without a gradient it was not
    param.grad = np.zeros(3, 'f4')
    assert free_if_used(param)
    param.initialize((3,))
    np.testing.assert_array_equal(param.array, [3, 3, 3])
    assert free_if_used(param)
