"""A linear layer over many ranks, beside the same one in one process."""

from __future__ import annotations

from collections.abc import Callable

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError
from mnx.links import ParallelLinear
from tests.links.counting import counting
from tests.links.training import (
    assert_equal_wholes,
    batches,
    seeded,
    split_params,
    train,
    wholes,
)

N_IN, N_HIDDEN, N_OUT = 11, 13, 3  # no number of ranks divides them; 3 outputs on up to 4 ranks
Make = Callable[[Communicator], chainer.Link]


def serial(n_in: int | None = N_IN) -> chainer.Link:
    n_hidden = N_HIDDEN if n_in else None
    return chainer.Sequential(L.Linear(n_in, N_HIDDEN), F.tanh, L.Linear(n_hidden, N_OUT))


def both(partition: str, n_in: int | None = N_IN) -> Make:
    return lambda comm: chainer.Sequential(
        ParallelLinear(n_in, N_HIDDEN, comm, partition),
        F.tanh,
        ParallelLinear(N_HIDDEN if n_in else None, N_OUT, comm, partition),
    )


def column_and_row(comm: Communicator, n_in: int | None = N_IN) -> chainer.Link:
    n_hidden = N_HIDDEN if n_in else None
    return chainer.Sequential(
        ParallelLinear(n_in, N_HIDDEN, comm, gather_output=False),
        F.tanh,
        ParallelLinear(n_hidden, N_OUT, comm, 'input', input_is_split=True),
    )


MODELS: dict[str, Make] = {
    'output': both('output'),
    'input': both('input'),
    'pair': column_and_row,
}
LAZY: dict[str, Make] = {
    'output': both('output', None),
    'input': both('input', None),
    'pair': lambda comm: column_and_row(comm, None),
}


@pytest.mark.parametrize('name', MODELS)
def test_140_steps_are_those_of_one_process(comm: Communicator, name: str) -> None:
    data = batches(140, (N_IN,), N_OUT)
    expected, found = seeded(serial), seeded(lambda: MODELS[name](comm))
    losses = train(expected, data)
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_allclose(train(found, data), losses, rtol=1e-9)
    assert_equal_wholes(found, expected, 1e-9)


def test_float32(comm: Communicator) -> None:
    data = [(x.astype('f'), t) for x, t in batches(140, (N_IN,), N_OUT)]
    np.random.seed(0)
    expected = serial()
    np.random.seed(0)
    found = column_and_row(comm)
    np.testing.assert_allclose(train(found, data), train(expected, data), rtol=1e-3)
    assert_equal_wholes(found, expected, 1e-3)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('lazy', [False, True])
def test_it_starts_as_one_process_does(comm: Communicator, name: str, lazy: bool) -> None:
    """The same bits, and the same random numbers afterwards."""
    x = np.ones((2, N_IN))
    with chainer.using_config('dtype', np.float64):
        expected = seeded(lambda: serial(None if lazy else N_IN))
        expected(x)
        following = np.random.random()
        found = seeded(lambda: (LAZY if lazy else MODELS)[name](comm))
        found(x)
    assert np.random.random() == following
    for key, value in wholes(expected).items():
        np.testing.assert_array_equal(wholes(found)[key], value)
    assert [link.in_size for link in found.children()] == [N_IN, N_HIDDEN]


def test_values_that_are_given(comm: Communicator) -> None:
    W, b = np.arange(15.0).reshape(5, 3), np.arange(5.0)
    for partition in ('output', 'input'):
        link = ParallelLinear(3, 5, comm, partition, initialW=W, initial_bias=b)
        x = np.ones((2, 3), 'f')
        np.testing.assert_allclose(link(x).array, x @ W.T + b)
        np.testing.assert_array_equal(wholes(link)['W'], W)


@pytest.mark.parametrize('name', MODELS)
def test_gradient_by_differences(comm: Communicator, name: str) -> None:
    """The gradient of *the* loss, which every rank holds: not n times as much."""
    model = seeded(lambda: MODELS[name](comm))
    x = chainer.Variable(np.random.default_rng(1).standard_normal((4, N_IN)))

    def loss():
        return F.sum(F.sin(model(x)))

    model.cleargrads()
    loss().backward()
    eps = 1e-6
    for index in [(0, 0), (3, N_IN - 1)]:
        assert difference(loss, x.array, index, eps) == pytest.approx(x.grad[index], abs=1e-7)
    for link in model.children():
        for param, whole in ((link.W, (link.out_size, link.in_size)), (link.b, (link.out_size,))):
            for index in (tuple(0 for _ in whole), tuple(n - 1 for n in whole)):
                check_parameter(loss, param, index, whole, eps)


def check_parameter(loss, param, index, whole, eps):
    """All ranks change one number of the whole; the rank that has it compares."""
    place = np.zeros(whole, bool)
    place[index] = True
    mine = param.part.cut(place) if hasattr(param, 'part') else place
    assert mine.shape == param.shape
    value = difference(loss, param.array, mine, eps)
    if mine.any():
        assert value == pytest.approx(float(param.grad[mine][0]), abs=1e-7)


def difference(loss, array, index, eps):
    before = array[index].copy()
    array[index] = before + eps
    high = float(loss().array)
    array[index] = before - eps
    low = float(loss().array)
    array[index] = before
    return (high - low) / (2 * eps)


def test_replicated_gradients_have_the_same_bits(comm: Communicator) -> None:
    model = seeded(lambda: column_and_row(comm))
    x = chainer.Variable(np.random.default_rng(1).standard_normal((4, N_IN)))
    model.cleargrads()
    F.sum(F.sin(model(x))).backward()
    for grad in (x.grad, model[2].b.grad):
        assert len(set(comm.allgather_obj(grad.tobytes()))) == 1


def test_second_derivatives(comm: Communicator) -> None:
    x = np.random.default_rng(1).standard_normal((4, N_IN))
    found, expected = (penalty(seeded(make), x) for make in (lambda: column_and_row(comm), serial))
    for key, value in wholes(expected).items():
        np.testing.assert_allclose(wholes(found)[key], value, rtol=1e-10, atol=1e-13)


def penalty(model, x):
    """Return `model` with the gradients of a gradient's norm as its values."""
    x = chainer.Variable(x)
    (g,) = chainer.grad([F.sum(F.sin(model(x)))], [x], enable_double_backprop=True)
    model.cleargrads()
    F.sum(g * g).backward()
    for param in model.params():
        param.array[...] = 0 if param.grad is None else param.grad
    return model


class TestTraffic:
    """What N5 of the specification says: activations, and nothing of the weight's size."""

    B = 6

    @staticmethod
    def one(partition):
        return lambda comm: ParallelLinear(N_IN, N_OUT, comm, partition)

    def passes(self, comm, make, *, first):
        counted, log = counting(comm)
        model = seeded(lambda: make(counted))
        x = np.ones((self.B, N_IN))
        x = x if first else chainer.Variable(x)
        assert log == []  # none to begin with, though each rank has drawn its weights
        loss = F.sum(model(x))
        forward = log.copy()
        log.clear()
        loss.backward()
        backward = log.copy()
        counted.finalize()
        return forward, backward

    @pytest.mark.parametrize('first', [True, False])
    def test_output(self, comm: Communicator, first: bool) -> None:
        forward, backward = self.passes(comm, self.one('output'), first=first)
        assert forward == [('all_gather', N_OUT * self.B * 8)]
        assert backward == ([] if first else [('all_reduce', N_IN * self.B * 8)])

    @pytest.mark.parametrize('first', [True, False])
    def test_input(self, comm: Communicator, first: bool) -> None:
        forward, backward = self.passes(comm, self.one('input'), first=first)
        assert forward == [('all_reduce', N_OUT * self.B * 8)]
        assert backward == ([] if first else [('all_gather', N_IN * self.B * 8)])

    @pytest.mark.parametrize('first', [True, False])
    def test_pair(self, comm: Communicator, first: bool) -> None:
        forward, backward = self.passes(comm, column_and_row, first=first)
        assert forward == [('all_reduce', N_OUT * self.B * 8)]
        assert backward == ([] if first else [('all_reduce', N_IN * self.B * 8)])

    def test_a_step_moves_no_weights(self, comm: Communicator) -> None:
        counted, log = counting(comm)
        model = seeded(lambda: column_and_row(counted))
        train(model, batches(2, (N_IN,), N_OUT, self.B))
        assert log == [('all_reduce', N_OUT * self.B * 8)] * 2
        counted.finalize()


@pytest.mark.parametrize('name', MODELS)
def test_memory(comm: Communicator, name: str) -> None:
    """All parts together are the whole, but for the biases that every rank has; state as well."""
    model = seeded(lambda: MODELS[name](comm))
    train(model, batches(1, (N_IN,), N_OUT))
    sizes = [p.size for p in split_params(model)]
    states = [v.size for p in split_params(model) for v in p.update_rule.state.values()]
    assert sizes == states
    whole = sum(p.size for p in serial().params())
    replicated = sum(p.size for p in model.params()) - sum(sizes)
    assert replicated == {'output': 0, 'input': N_HIDDEN + N_OUT, 'pair': N_OUT}[name]
    assert sum(comm.allgather_obj(sum(sizes))) == whole - replicated


def test_nobias_and_several_batch_axes(comm: Communicator) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    for partition in ('output', 'input'):
        for n in (1, 2, 3):
            width = int(np.prod(x.shape[n:]))
            expected = seeded(lambda w=width: L.Linear(w, 6, nobias=True))
            found = seeded(lambda w=width, p=partition: ParallelLinear(w, 6, comm, p, nobias=True))
            y = found(x, n_batch_axes=n)
            np.testing.assert_allclose(y.array, expected(x, n_batch_axes=n).array, rtol=1e-12)
            assert [name for name, _ in found.namedparams()] == ['/W']


@pytest.mark.needs_ranks(2)
class TestMisuse:
    def test_other_seeds(self, comm: Communicator) -> None:
        np.random.seed(comm.rank)
        with pytest.raises(MismatchError, match=r'drew different initial values.*one seed'):
            ParallelLinear(3, 4, comm)

    def test_a_scattered_batch(self, comm: Communicator) -> None:
        link = seeded(lambda: ParallelLinear(3, 4, comm))
        with pytest.raises(MismatchError, match=r'different inputs.*do not scatter'):
            link(np.full((2, 3), comm.rank, float))

    def test_a_scattered_batch_later(self, comm: Communicator) -> None:
        link = seeded(lambda: ParallelLinear(3, 4, comm))
        link(np.zeros((2, 3)))
        with chainer.using_config('debug', True), pytest.raises(MismatchError, match='scatter'):
            link(np.full((2, 3), comm.rank, float))

    @pytest.mark.parametrize(
        'options',
        [
            {'partition': 'rows'},
            {'partition': 'input', 'gather_output': True},
            {'partition': 'output', 'input_is_split': True},
        ],
        ids=['unknown', 'gather', 'split'],
    )
    def test_arguments(self, comm: Communicator, options: dict[str, object]) -> None:
        with pytest.raises(ArgumentError, match='ParallelLinear: '):
            ParallelLinear(3, 4, comm, **options)

    def test_ranks_that_disagree(self, comm: Communicator) -> None:
        with pytest.raises(MismatchError):
            ParallelLinear(3, 4, comm, 'output' if comm.rank else 'input')

    def test_another_number_of_inputs_is_an_error_on_all(self, comm: Communicator) -> None:
        """Also on rank 0, whose part of them is as wide as that of its weight."""
        link = seeded(lambda: ParallelLinear(comm.size + 1, 4, comm, 'input'))
        with pytest.raises(ArgumentError, match='another number of features'):
            link(np.ones((2, comm.size)))
        comm.barrier()


@pytest.mark.parametrize(
    ('shape', 'n_batch_axes'), [((4,), 1), ((), 1), ((4, 1), 0), ((4, 1), 3)], ids=str
)
def test_an_input_without_batch_or_features_is_an_error(
    comm: Communicator, shape: tuple[int, ...], n_batch_axes: int
) -> None:
    with pytest.raises(ArgumentError, match='axes of a batch'):
        ParallelLinear(None, 2, comm)(np.zeros(shape, 'f4'), n_batch_axes)


def test_a_vector_on_one_rank_is_an_error_on_all(comm: Communicator) -> None:
    link = ParallelLinear(4, 3, comm)
    shape = (4,) if comm.rank == comm.size - 1 else (2, 4)
    with pytest.raises(ArgumentError, match='needs axes of a batch'):
        link(np.full(shape, comm.rank, np.float32))
