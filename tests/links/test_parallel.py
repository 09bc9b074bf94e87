"""What parallel links share, with the plainest link that can be: y = x W^T + b."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError
from mnx.links.parallel import ParallelLink
from tests.links.training import wholes

N_IN, N_OUT = 6, 5  # no number of ranks from 2 on divides both
W = np.arange(30.0).reshape(N_OUT, N_IN) - 11
B = np.arange(5.0) * 7
X = np.random.RandomState(4).standard_normal((3, N_IN))  # the same on all ranks


class Product(ParallelLink):
    _shown = ('extra',)
    extra = 'more'

    def __init__(
        self,
        comm: Communicator,
        partition: str = 'output',
        gather_output: bool | None = None,
        input_is_split: bool = False,
        inputs: int | None = N_IN,
        nobias: bool = False,
    ) -> None:
        super().__init__(comm, partition, gather_output, input_is_split)
        self._add_params(N_OUT, inputs, nobias, W, B)

    def _weight_shape(self, inputs: int) -> tuple[int, ...]:
        return N_OUT, inputs

    def _apply(self, x: Any, b: Any) -> Any:
        return F.linear(x, self.W, b)

    def forward(self, x: Any) -> Any:
        return self._forward(chainer.as_variable(x))


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    with chainer.using_config('dtype', np.float64):
        yield


def cut(comm: Communicator, link: Product, x: np.ndarray, axis: int) -> np.ndarray:
    """Return this rank's part of `x`, by the lengths of its parts of the weight."""
    lengths = comm.allgather_obj(link.W.shape[axis])
    start = sum(lengths[: comm.rank])
    return np.take(x, range(start, start + lengths[comm.rank]), 1)


@pytest.mark.parametrize('inputs', [N_IN, None], ids=['sized', 'lazy'])
@pytest.mark.parametrize('nobias', [False, True], ids=['bias', 'nobias'])
@pytest.mark.parametrize('partition', ['output', 'input'])
def test_values_and_gradients(
    comm: Communicator, partition: str, nobias: bool, inputs: int | None
) -> None:
    """Of the loss that every rank holds: the gradient of one process."""
    link = Product(comm, partition, inputs=inputs, nobias=nobias)
    x = chainer.Variable(X.copy())
    y = link(x)
    expected = X @ W.T + (0 if nobias else B)
    np.testing.assert_allclose(y.array, expected, rtol=1e-12)
    seeds = np.cos(expected)
    link.cleargrads()
    F.sum(y * seeds).backward()
    np.testing.assert_allclose(x.grad, seeds @ W, rtol=1e-12)
    np.testing.assert_allclose(link.W.grad, link.W.part.cut(seeds.T @ X), rtol=1e-12)
    if not nobias:
        gb = seeds.sum(axis=0)
        gb = link.b.part.cut(gb) if partition == 'output' else gb
        np.testing.assert_allclose(link.b.grad, gb, rtol=1e-12)


@pytest.mark.parametrize('inputs', [N_IN, None], ids=['sized', 'lazy'])
def test_an_input_that_is_split_already(comm: Communicator, inputs: int | None) -> None:
    """A rank's part alone, whose whole length is found out at the first call."""
    link = Product(comm, 'input', input_is_split=True, inputs=inputs)
    mine = cut(comm, Product(comm, 'input'), X, 1)
    np.testing.assert_allclose(link(mine).array, X @ W.T + B, rtol=1e-12)


def test_an_output_that_stays_split(comm: Communicator) -> None:
    link = Product(comm, gather_output=False)
    np.testing.assert_allclose(link(X).array, cut(comm, link, X @ W.T + B, 0), rtol=1e-12)


@pytest.mark.parametrize('partition', ['output', 'input'])
def test_it_is_saved_as_one_process_would(comm: Communicator, partition: str) -> None:
    found = wholes(Product(comm, partition))
    assert found.keys() == {'W', 'b'}
    np.testing.assert_array_equal(found['W'], W)
    np.testing.assert_array_equal(found['b'], B)


@pytest.mark.parametrize('axis', [0, 1])
def test_a_rank_holds_its_part_alone(comm: Communicator, axis: int) -> None:
    link = Product(comm, ('output', 'input')[axis])
    assert sum(comm.allgather_obj(link.W.size)) == W.size
    assert link.W.shape[1 - axis] == W.shape[1 - axis]
    assert sum(comm.allgather_obj(link.b.size)) == (B.size * comm.size if axis else B.size)


def test_a_deep_copy_talks_to_the_same_ranks(comm: Communicator) -> None:
    link = Product(comm)
    copied = copy.deepcopy(link)
    copied.W.array[...] *= 2
    assert copied.comm is comm
    np.testing.assert_allclose(copied(X).array, 2 * X @ W.T + B, rtol=1e-12)
    np.testing.assert_allclose(link(X).array, X @ W.T + B, rtol=1e-12)


def test_what_is_shown(comm: Communicator) -> None:
    specs = dict(Product(comm, 'input').printable_specs)
    assert specs == {
        'extra': 'more',
        'partition': 'input',
        'gather_output': True,
        'input_is_split': False,
    }
    assert '(extra=more, partition=input, gather_output=True, ' in str(Product(comm, 'input'))


ARGUMENTS = {
    'unknown': ({'partition': 'rows'}, "partition is 'output' or 'input', but got 'rows'"),
    'gathered': (
        {'partition': 'input', 'gather_output': False},
        'expected no gather_output but got False. Leave it out',
    ),
    'split': ({'input_is_split': True}, 'expected input_is_split=False but got True'),
}


@pytest.mark.parametrize('name', ARGUMENTS)
def test_arguments_of_one_rank_are_an_error_on_all(comm: Communicator, name: str) -> None:
    wrong, text = ARGUMENTS[name]
    with pytest.raises(ArgumentError, match=f'Product: .*{text}'):
        Product(comm, **(wrong if comm.rank == comm.size - 1 else {}))


@pytest.mark.needs_ranks(2)
class TestRanksThatDiffer:
    @pytest.mark.parametrize(
        'options',
        [{'partition': 'input'}, {'gather_output': False}],
        ids=['partition', 'gather_output'],
    )
    def test_in_what_they_want(self, comm: Communicator, options: dict[str, Any]) -> None:
        with pytest.raises(MismatchError):
            Product(comm, **(options if comm.rank == 0 else {}))

    def test_in_their_input(self, comm: Communicator) -> None:
        """Compared at the first call; in debug mode at each."""
        link = Product(comm)
        with pytest.raises(MismatchError, match=r'different inputs.*do not scatter the data'):
            link(X + comm.rank)
        link(X)
        with chainer.using_config('debug', True), pytest.raises(MismatchError, match='inputs'):
            link(X + comm.rank)

    def test_a_split_input_differs_by_right(self, comm: Communicator) -> None:
        link = Product(comm, 'input', input_is_split=True)
        with chainer.using_config('debug', True):
            link(cut(comm, link, X, 1))
