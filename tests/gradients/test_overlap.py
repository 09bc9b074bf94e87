"""The exchange itself, told by hand what is ready and what it is at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import chainer
import numpy as np
import pytest

from mnx.arrays import Array
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError
from mnx.gradients.overlap import OverlappedExchange

SHAPES = (2, 3), (4,), (), (5, 1)
TINY = 40  # bytes of a bucket: one or two of them

Gradients = list[Array | None]


class Model(chainer.Link):
    def __init__(self, dtype: str = 'f8') -> None:
        super().__init__()
        with self.init_scope():
            for i, shape in enumerate(SHAPES):
                setattr(self, f'p{i}', chainer.Parameter(np.ones(shape, dtype)))


@contextmanager
def exchange_of(
    comm: Communicator, op: str = 'mean', cap: int = TINY, model: chainer.Link | None = None
) -> Iterator[OverlappedExchange]:
    made = OverlappedExchange(model or Model(), comm, op, cap)
    yield made
    made.close()


def own(rank: int, turn: int = 0) -> Gradients:
    draw = np.random.default_rng([rank, turn])
    return [np.asarray(draw.standard_normal(shape)) for shape in SHAPES]


def mean(gradients: Sequence[Gradients], size: int) -> Gradients:
    """Return the means in one process; who has none has zeros, and where all have none is none."""
    found: Gradients = []
    for column in zip(*gradients, strict=True):
        given = [g for g in column if g is not None]
        found.append(sum(given) / size if given else None)
    return found


def step(
    exchange: OverlappedExchange,
    totals: Gradients,
    order: Sequence[int] | None = None,
    guesses: dict[int, Array] | None = None,
) -> Gradients:
    """Be ready in an order, with another guess for some, and finish."""
    for i in reversed(range(len(totals))) if order is None else order:
        gradient = (guesses or {}).get(i, totals[i])
        if gradient is not None and exchange.wants(i):
            exchange.ready(i, gradient)
    return exchange.finish(totals)


def assert_means(found: Gradients, expected: Gradients) -> None:
    for g, z in zip(found, expected, strict=True):
        if z is None:
            assert g is None
        else:
            assert g.shape == z.shape
            np.testing.assert_allclose(g, z, rtol=1e-13, atol=1e-14)


def assert_those_of_all(comm: Communicator, found: Gradients, turn: int) -> None:
    assert_means(found, mean([own(r, turn) for r in range(comm.size)], comm.size))


@pytest.mark.parametrize('cap', [1, TINY, 10_000])
def test_means_of_all_ranks(comm: Communicator, cap: int) -> None:
    """The first time everything starts at the end, then all of it before."""
    with exchange_of(comm, cap=cap) as exchange:
        for turn in range(3):
            assert_those_of_all(comm, step(exchange, own(comm.rank, turn)), turn)
            n_buckets = {1: 4, TINY: 3, 10_000: 1}[cap]
            assert exchange.started_early == (n_buckets if turn else 0)


def test_the_bits_do_not_depend_on_when_it_starts(comm: Communicator) -> None:
    found = []
    for overlaps in (True, False):
        with exchange_of(comm) as exchange:
            exchange.overlaps = overlaps
            results = [step(exchange, own(comm.rank, turn)) for turn in range(3)]
            assert bool(exchange.started_early) == overlaps
            found.append([g.tobytes() for result in results for g in result])
    assert found[0] == found[1]
    assert len(set(comm.allgather_obj(tuple(found[0])))) == 1


def test_sum(comm: Communicator) -> None:
    with exchange_of(comm, op='sum') as exchange:
        for turn in range(2):
            expected = mean([own(r, turn) for r in range(comm.size)], 1)
            assert_means(step(exchange, own(comm.rank, turn)), expected)


def test_each_rank_in_an_order_of_its_own(comm: Communicator) -> None:
    with exchange_of(comm) as exchange:
        for turn in range(4):
            order = np.random.default_rng([comm.rank, turn]).permutation(len(SHAPES)).tolist()
            assert_those_of_all(comm, step(exchange, own(comm.rank, turn), order), turn)


def test_a_rank_uses_one_parameter_alone(comm: Communicator) -> None:
    """The others count as zeros; what no rank uses has no gradient."""
    with exchange_of(comm) as exchange:
        for turn in range(3):
            uses = [(rank + turn) % 3 for rank in range(comm.size)]  # the last one nobody
            all_of = [
                [g if i == use else None for i, g in enumerate(own(rank, turn))]
                for rank, use in enumerate(uses)
            ]
            assert_means(step(exchange, all_of[comm.rank]), mean(all_of, comm.size))


def test_a_wrong_guess_of_one_rank_costs_a_second_round_only(comm: Communicator) -> None:
    """From then on all ranks wait with this gradient to the end, and the rest stays early."""
    with exchange_of(comm, cap=1) as exchange:
        step(exchange, own(comm.rank))
        totals = own(comm.rank, 1)
        guesses = {2: np.asarray(99.0)} if comm.rank == comm.size - 1 else {}
        assert_those_of_all(comm, step(exchange, totals, guesses=guesses), 1)
        assert exchange.started_early == 4
        assert [exchange.wants(i) for i in range(4)] == [True, True, False, True]
        assert_those_of_all(comm, step(exchange, own(comm.rank, 2)), 2)
        assert exchange.started_early == 3


def test_what_was_never_ready_is_whole_at_the_end(comm: Communicator) -> None:
    with exchange_of(comm) as exchange:
        for turn in range(3):
            order = [3, 1] if comm.rank == 0 else [3, 1, 0, 2]
            assert_those_of_all(comm, step(exchange, own(comm.rank, turn), order), turn)


@pytest.mark.parametrize('what', ['added', 'replaced', 'reshaped', 'cast'])
def test_another_model_than_it_was(comm: Communicator, what: str) -> None:
    """On the last rank; all raise, and the exchange is of no use from then on."""
    model = Model()
    with exchange_of(comm, model=model) as exchange:
        step(exchange, own(comm.rank))
        if comm.rank == comm.size - 1:
            with model.init_scope():
                if what == 'added':
                    model.q = chainer.Parameter(np.ones(1))
                elif what == 'replaced':
                    model.p1 = chainer.Parameter(np.ones(4))
                elif what == 'reshaped':
                    model.p1.array = np.ones((2, 2))
                else:
                    model.p1.array = np.ones(4, 'f4')
        changed = 'has other parameters' if what in ('added', 'replaced') else 'have other shapes'
        with pytest.raises(ArgumentError, match=f'{changed}.*inject it anew'):
            step(exchange, own(comm.rank, 1))
        with pytest.raises(ArgumentError, match='out of step'):
            step(exchange, own(comm.rank, 2))


@pytest.mark.needs_ranks(2)
def test_ranks_with_different_models(comm: Communicator) -> None:
    with (
        exchange_of(comm, model=Model('f4' if comm.rank else 'f8')) as exchange,
        pytest.raises(MismatchError, match='layout'),
    ):
        exchange.finish(own(comm.rank))


@pytest.mark.parametrize('n', [0, 1, 4])
def test_close_while_a_rank_has_begun(comm: Communicator, n: int) -> None:
    """Rank 0 is stopped in the middle of backward; the buckets that it started are matched."""
    exchange = OverlappedExchange(Model(), comm, 'mean', 1)
    step(exchange, own(comm.rank))
    if comm.rank == 0:
        for i in reversed(range(4 - n, 4)):
            exchange.ready(i, own(0)[i])
    exchange.close()
    with exchange_of(comm) as following:
        assert_those_of_all(comm, step(following, own(comm.rank, 5)), 5)


def test_two_dtypes_do_not_share_a_bucket(comm: Communicator) -> None:
    model = Model()
    model.p1.array = np.ones(4, 'f4')
    with exchange_of(comm, cap=10_000, model=model) as exchange:
        for turn in range(2):
            everyone = [own(rank, turn) for rank in range(comm.size)]
            for gradients in everyone:
                gradients[1] = gradients[1].astype('f4')
            found = step(exchange, everyone[comm.rank])
            assert [g.dtype.char for g in found] == ['d', 'f', 'd', 'd']
            for g, z in zip(found, mean(everyone, comm.size), strict=True):
                np.testing.assert_allclose(g, z, rtol=1e-6 if g.dtype == 'f' else 1e-13)
    assert exchange.started_early == 3  # 3 2 | 1 | 0
