"""How many samples there are; and what cannot be known is never taken for granted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import MismatchError
from mnx.optimizers.batch_size import batch_size, other_sizes


def test_the_first_that_tells() -> None:
    x = np.zeros((7, 3))
    assert batch_size((x, np.zeros(7)), {}) == 7
    assert batch_size((chainer.Variable(x),), {}) == 7
    assert batch_size(({'a': x},), {}) == 7
    assert batch_size((), {'x': [x[:5], x]}) == 2  # a list of sequences
    assert batch_size(((x[:5], x), 3), {}) == 5
    assert batch_size((['a', 'b'],), {}) == 2
    assert batch_size((3.0, np.zeros(())), {}) is None
    assert batch_size((np.zeros((0, 3)),), {}) == 0


def test_all_that_tell_otherwise() -> None:
    x = np.zeros((7, 3))
    assert other_sizes((x, np.zeros(7), 1.0), {'y': x}) == ''
    assert other_sizes((), {}) == ''
    assert other_sizes(({'x': x, 'mask': x[:2]},), {}).startswith('arguments of 7 or 2 samples')
    sequences = [x[:2], x[:5], x]
    assert other_sizes((sequences, [1, 2, 3]), {}) == ''  # as many labels as sequences
    assert 'of 3 or 14 ' in other_sizes((sequences, np.concatenate(sequences)[:, 0]), {})
    assert 'of 7 or 9 or 2 ' in other_sizes((x,), {'a': np.zeros(9), 'b': x, 'c': [1, 2]})


def update(
    comm: Communicator, x: np.ndarray, *others: Any, weight: Callable[..., float] | None = None
) -> np.ndarray:
    """Return what one step of 1 makes of zeros: minus the gradient of the mean of x."""
    link = L.Linear(1, 1, initialW=0, nobias=True)
    actual = chainer.optimizers.SGD(1)
    optimizer = mnx.create_multi_node_optimizer(actual, comm, weight=weight).setup(link)
    optimizer.update(lambda x, *_: F.mean(link(x.reshape(-1, 1))), x, *others)
    return link.W.array.item()


BESIDE: dict[str, Callable[[np.ndarray], Any]] = {
    'a table': lambda x: np.zeros(10),
    'labels of time-major steps': lambda x: np.zeros(3),
    'a dict': lambda x: {'x': x, 'table': np.zeros(10)},
}


@pytest.mark.parametrize('case', BESIDE)
def test_equal_batches_have_equal_shares_whatever_counts(comm: Communicator, case: str) -> None:
    x = np.full((4, 3), comm.rank, 'f4')
    assert update(comm, x, BESIDE[case](x)) == pytest.approx(-(comm.size - 1) / 2)


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('case', BESIDE)
def test_unequal_batches_need_a_weight(comm: Communicator, case: str) -> None:
    sizes = np.arange(comm.size) + 4
    x = np.full((sizes[comm.rank], 3), comm.rank, 'f4')
    beside = BESIDE[case](x)
    with pytest.raises(MismatchError, match=r'arguments of 4 or .* give weight='):
        update(comm, x, beside)
    expected = -np.average(np.arange(comm.size), weights=sizes)
    found = update(comm, x, beside, weight=lambda x, *_: len(x))
    assert found == pytest.approx(expected)


@pytest.mark.needs_ranks(2)
def test_unequal_batches_that_agree_on_one_rank_by_chance(comm: Communicator) -> None:
    x = np.ones((10 if comm.rank == 1 else 32, 3), 'f4')
    with pytest.raises(MismatchError, match='arguments of 32 or 10 samples'):
        update(comm, x, np.zeros(10))
