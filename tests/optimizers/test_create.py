"""Which wrapper `create_multi_node_optimizer` makes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import chainer.links as L
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.optimizers import MultiNodeOptimizer
from mnx.optimizers.double_buffering import DoubleBufferingOptimizer


@pytest.mark.parametrize(
    ('options', 'kind'),
    [
        ({}, MultiNodeOptimizer),
        ({'zero_fill': False}, MultiNodeOptimizer),
        ({'double_buffering': True}, DoubleBufferingOptimizer),
    ],
    ids=['plain', 'no zero_fill', 'double_buffering'],
)
def test_which_wrapper_it_is(comm: Communicator, options: dict[str, Any], kind: type) -> None:
    actual = chainer.optimizers.SGD(0.1 + comm.rank)
    made = mnx.create_multi_node_optimizer(actual, comm, **options)
    assert type(made) is kind
    assert made.actual_optimizer is actual
    assert made.lr == 0.1 + comm.rank  # nothing is compared or changed before `setup`


@pytest.mark.parametrize('period', [-1, 'often'])
def test_a_period_of_one_rank_that_is_none_is_an_error_on_all(
    comm: Communicator, period: Any
) -> None:
    period = period if comm.rank == comm.size - 1 else 10
    with pytest.raises(ArgumentError, match='check_every'):
        mnx.create_multi_node_optimizer(chainer.optimizers.SGD(), comm, check_every=period)


WRONG: dict[str, Callable[[Communicator], tuple[object, object]]] = {
    'none': lambda comm: (None, comm),
    'a link': lambda comm: (L.Linear(3, 2), comm),
    'swapped': lambda comm: (comm, chainer.optimizers.SGD()),
    'a class': lambda comm: (chainer.optimizers.SGD, comm),
    'no communicator': lambda comm: (chainer.optimizers.SGD(), None),
    'wrapped before': lambda comm: (
        mnx.create_multi_node_optimizer(chainer.optimizers.SGD(), comm),
        comm,
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_arguments_of_wrong_types(comm: Communicator, case: str) -> None:
    with pytest.raises(TypeError, match=r'create_multi_node_optimizer: .* is wrong, expected'):
        mnx.create_multi_node_optimizer(*WRONG[case](comm))


@pytest.mark.needs_ranks(2)
def test_a_wrong_optimizer_on_one_rank_is_an_error_on_all(comm: Communicator) -> None:
    actual = None if comm.rank == 1 else chainer.optimizers.SGD()
    with pytest.raises(TypeError, match=rf'got None \(rank 1 of {comm.size}\)'):
        mnx.create_multi_node_optimizer(actual, comm)
