from __future__ import annotations

from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from mnx import functions as MF
from mnx.communicators import Communicator
from mnx.errors import MismatchError
from mnx.links import MultiNodeChainList, create_multi_node_n_step_rnn

Variable = Any

two_ranks = pytest.mark.needs_ranks(2)
KINDS = [
    getattr(L, f'NStep{bi}{kind}')
    for bi in ('', 'Bi')
    for kind in ('LSTM', 'GRU', 'RNNTanh', 'RNNReLU')
]
every_kind = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
LENGTHS = (4, 2, 3)
STEPS = 5


def make(kind: type, seed: int) -> Any:
    with chainer.using_config('dtype', np.float64):
        np.random.seed(seed)
        return kind(2, 3, 4, 0.0)


def sequences(rank: int, step: int = 0) -> list[Variable]:
    rng = np.random.default_rng(10 * step + rank)
    return [chainer.Variable(rng.normal(size=(n, 3))) for n in LENGTHS]


def loss_of(weight: int, outputs: Any) -> Variable:
    """Of all that the RNN returns."""
    *states, ys = outputs
    return sum(F.sum(v**2) * weight * (k + 1) for k, v in enumerate((*states, *ys)))


def stack(rnns: list[Any], xs: list[Any]) -> list[Any]:
    """Run all parts in one process; return what each returns."""
    states: list[Any] = [None] * rnns[0].n_cells
    found = []
    for rnn, x in zip(rnns, xs, strict=True):
        found.append(rnn(*states, x))
        states = list(found[-1][:-1])
    return found


def part_of(comm: Communicator, kind: type) -> Any:
    """The part of this rank, in a stack that is cut over all ranks."""
    before = comm.rank - 1 if comm.rank else None
    after = comm.rank + 1 if comm.rank < comm.size - 1 else None
    return create_multi_node_n_step_rnn(make(kind, comm.rank), comm, before, after)


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@two_ranks
@every_kind
def test_it_equals_the_stack_in_one_process(comm: Communicator, kind: type) -> None:
    """Outputs, gradients, and some steps of training."""
    rnn, alone = part_of(comm, kind), [make(kind, r) for r in range(comm.size)]
    optimizer = chainer.optimizers.Adam(0.01).setup(rnn)
    serial = chainer.optimizers.Adam(0.01).setup(chainer.ChainList(*alone))
    for step in range(STEPS):
        expected_x = [sequences(r, step) for r in range(comm.size)]
        expected = stack(alone, expected_x)
        serial.target.cleargrads()
        sum(loss_of(r + 1, outputs) for r, outputs in enumerate(expected)).backward()

        xs = sequences(comm.rank, step)
        *outputs, delegate = rnn(xs)
        assert (delegate is None) == (comm.rank == comm.size - 1)
        rnn.cleargrads()
        loss_of(comm.rank + 1, outputs).backward()  # the delegate is not needed for it
        for state, state0 in zip(outputs[:-1], expected[comm.rank][:-1], strict=True):
            assert_close(state.array, state0.array)
        for x, x0 in zip(xs, expected_x[comm.rank], strict=True):
            assert_close(x.grad, x0.grad)
        for p, p0 in zip(rnn.params(), alone[comm.rank].params(), strict=True):
            assert_close(p.grad, p0.grad)
        optimizer.update()
        serial.update()
    for p, p0 in zip(rnn.params(), alone[comm.rank].params(), strict=True):
        assert_close(p.array, p0.array)


def differentiate_twice(loss: Variable, link: chainer.Link) -> None:
    """Leave in ``grad`` the derivatives of a function of the gradients."""
    link.cleargrads()
    loss.backward(enable_double_backprop=True)
    penalty = sum(F.sum(F.sin(p.grad_var)) for p in link.params())
    link.cleargrads()
    penalty.backward()


@two_ranks
@pytest.mark.parametrize('kind', [L.NStepLSTM, L.NStepBiGRU], ids=lambda kind: kind.__name__)
def test_second_derivatives_are_those_of_one_process(comm: Communicator, kind: type) -> None:
    rnn, alone = part_of(comm, kind), [make(kind, r) for r in range(comm.size)]
    everything = stack(alone, [sequences(r) for r in range(comm.size)])
    losses = [loss_of(r + 1, outputs) for r, outputs in enumerate(everything)]
    differentiate_twice(sum(losses), chainer.ChainList(*alone))
    *outputs, _ = rnn(sequences(comm.rank))
    differentiate_twice(loss_of(comm.rank + 1, outputs), rnn)
    for p, p0 in zip(rnn.params(), alone[comm.rank].params(), strict=True):
        assert p0.grad.any()
        assert_close(p.grad, p0.grad)


@two_ranks
def test_the_delegate_alone_is_enough_for_backward(comm: Communicator) -> None:
    """As a rank does whose outputs are not used."""
    rnn, alone = part_of(comm, L.NStepLSTM), [make(L.NStepLSTM, r) for r in range(comm.size)]
    loss_of(1, stack(alone, [sequences(r) for r in range(comm.size)])[-1]).backward()
    *outputs, delegate = rnn(sequences(comm.rank))
    if delegate is None:
        loss_of(1, outputs).backward()
    else:
        assert (delegate.shape, delegate.name) == ((0,), 'delegate_variable')
        delegate.backward()
    for p, p0 in zip(rnn.params(), alone[comm.rank].params(), strict=True):
        assert_close(p.grad, p0.grad)


@two_ranks
def test_send_and_recv_on_the_other_side(comm: Communicator) -> None:
    """One message for each state, and one for the gradient of each."""
    if comm.rank == 0:
        rnn = create_multi_node_n_step_rnn(make(L.NStepLSTM, 0), comm, np.int64(1), 1)
        *_, delegate = rnn(sequences(0))
        delegate.backward()
    if comm.rank == 1:
        h, c = states = [chainer.Variable(np.full((2, 3, 4), 0.1 * k)) for k in (1, 2)]
        sent = [MF.send(state, comm, 0) for state in states]
        loss = loss_of(1, [MF.recv(comm, 0), MF.recv(comm, 0), []])
        for delegate in sent:
            (loss,) = MF.pseudo_connect(delegate, loss)
        loss.backward()

        h0, c0 = (chainer.Variable(x.array) for x in states)
        *found, _ = make(L.NStepLSTM, 0)(h0, c0, sequences(0))
        expected = loss_of(1, [*found, []])
        expected.backward()
        for x, x0 in ((loss.array, expected.array), (h.grad, h0.grad), (c.grad, c0.grad)):
            assert_close(x, x0)


class Embedding(chainer.Chain):
    """A part of an encoder, with a component that communicates inside."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        with self.init_scope():
            self.rnn = rnn

    def forward(self, *xs: Any) -> Any:
        return self.rnn([x * 2 for x in xs])


@two_ranks
@pytest.mark.limit(120)
@pytest.mark.parametrize('wrapping', [[], [0], [1], [0, 1]], ids=str)
def test_as_a_component(comm: Communicator, wrapping: list[int]) -> None:
    """Its messages are drawn and compared with the others where it is the link itself."""
    wrapped = comm.rank in wrapping
    model = MultiNodeChainList(comm)
    if comm.rank < 2:
        there = 1 - comm.rank
        rank_in, rank_out = (None, 1) if comm.rank == 0 else (there, None)
        rnn = create_multi_node_n_step_rnn(make(L.NStepLSTM, comm.rank), comm, rank_in, rank_out)
        model.add_link(Embedding(rnn) if wrapped else rnn)
    xs = sequences(comm.rank)
    y = model(*xs) if wrapped else model(xs)
    if comm.rank == 1:
        y = loss_of(1, y[:-1])
    (y[-1] if comm.rank == 0 else y).backward()
    assert all(p.grad.any() for p in model.params())
    drawn = model.describe().splitlines()[0]
    other = 'rank 1 ?' if 1 in wrapping else 'rank 1 #0'
    assert drawn.endswith('-> output' if 0 in wrapping else f'-> {other}, {other}, output')


@two_ranks
@pytest.mark.limit(120)
def test_a_missing_partner_of_a_component(comm: Communicator) -> None:
    model = MultiNodeChainList(comm)
    if comm.rank == 0:
        model.add_link(create_multi_node_n_step_rnn(make(L.NStepGRU, 0), comm, rank_out=1))
    with pytest.raises(MismatchError, match='rank 0 #0 sends to rank 1'):
        model(sequences(0))


def test_misuse(comm: Communicator) -> None:
    with pytest.raises(ValueError, match=r'expected NStepLSTM.* but got Linear'):
        create_multi_node_n_step_rnn(L.Linear(1), comm)
    for name in ('rank_in', 'rank_out'):
        for wrong, why in ((comm.size, 'is not a rank'), (comm.rank, 'is this rank itself')):
            with pytest.raises(ValueError, match=why):
                create_multi_node_n_step_rnn(make(L.NStepGRU, 0), comm, **{name: wrong})
