"""Sums straight between the processes' arrays: what is special about that way.

That it gives the same sums as others is tested with the window (test_node_window.py).
"""

from __future__ import annotations

import copy
import subprocess
import sys

import chainer
import numpy as np
import pytest

from mnx import testing
from mnx.communicators import Communicator, two_dimensional
from mnx.communicators.model_messages import Scaling
from mnx.communicators.straight_sums import StraightSums, plan, plan_of_rows
from mnx.errors import MismatchError, TransportError
from mnx.transports import peer_memory
from mnx.transports.peer_memory import MOST_PIECES, peer_memory_of
from tests.peers import may_reach_others

AS_IT_IS = two_dimensional.AcrossNodes(Scaling(1.0, 1.0), None, None, 1)

reaching = pytest.mark.skipif(not may_reach_others(), reason='Linux forbids it here')


@pytest.fixture
def sums(comm: Communicator) -> StraightSums:
    """Sums in chunks of 64 bytes."""
    peers = peer_memory_of(comm._control)
    assert peers is not None
    return StraightSums(comm._control, peers, 64)


# --- plans ---------------------------------------------------------------------------------------


def elements(found: object, itemsize: int) -> list[tuple[int, int, int]]:
    """Return the number of the array and the two indices of every element of a plan, in order."""
    return [
        (number, (source + at) // itemsize, (target + at) // itemsize)
        for first, count in found.chunks
        for number, source, target, nbytes in found.pieces[first : first + count]
        for at in range(0, nbytes, itemsize)
    ]


@pytest.mark.parametrize('size', [1, 2, 3, 5])
def test_every_element_is_summed_by_one_rank(size: int) -> None:
    shapes = [(3, 2), (0,), (1,), (), (40,), (2,)]
    whole = [(i, k, k) for i, s in enumerate(shapes) for k in range(int(np.prod(s)))]
    plans = [plan(shapes, 4, rank, size, 32) for rank in range(size)]
    assert [e for p in plans for e in elements(p, 4)] == whole
    for p in plans:
        for first, count in p.chunks:
            assert 0 < p.pieces[first : first + count, 3].sum() <= 32


def test_a_row_is_put_at_the_beginning() -> None:
    assert elements(plan_of_rows(20, 8, 2, 64), 8) == [(0, 40 + k, k) for k in range(20)]


def test_a_chunk_has_no_more_pieces_than_the_kernel_takes() -> None:
    found = plan([(1,)] * 3000, 4, 0, 1, 1 << 20)
    assert found.chunks.tolist() == [[0, 1024], [1024, 1024], [2048, 952]]
    assert MOST_PIECES == 1024


# --- sums ----------------------------------------------------------------------------------------


@reaching
@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('dtype', ['f4', 'f8'])
def test_more_arrays_than_a_call_of_the_kernel_takes(comm: Communicator, dtype: str) -> None:
    sums = StraightSums(comm._control, peer_memory_of(comm._control), 1 << 16)
    lengths = [1 + i % 3 for i in range(4000)]
    arrays = [np.full(n, i + comm.rank, dtype) for i, n in enumerate(lengths)]
    sums.sum(sums.plan([x.shape for x in arrays], np.dtype(dtype)), arrays, AS_IT_IS)
    for i, (x, n) in enumerate(zip(arrays, lengths, strict=True)):
        np.testing.assert_array_equal(x, np.full(n, sum(i + r for r in range(comm.size))))


@reaching
@pytest.mark.needs_ranks(2)
def test_arrays_of_other_layouts(comm: Communicator, sums: StraightSums) -> None:
    """Each rank has another one: turned, every second element, not aligned, plain."""
    expected = np.arange(60.0).reshape(6, 10)

    def layout(of: int) -> np.ndarray:
        if of == 1:
            return np.empty((10, 6)).T
        if of == 2:
            return np.empty((6, 20))[:, ::2]
        if of == 3:
            return np.empty(8 * 60 + 1, 'u1')[1:].view('f8').reshape(6, 10)
        return np.empty((6, 10))

    x = layout(comm.rank % 4)
    x[...] = expected + comm.rank
    total = comm.size * expected + sum(range(comm.size))
    into = layout((comm.rank + 1) % 4)
    found = sums.plan([x.shape], x.dtype)
    sums.sum(found, [x], AS_IT_IS, [into])
    np.testing.assert_array_equal(into, total)
    np.testing.assert_array_equal(x, expected + comm.rank)
    sums.sum(found, [x], AS_IT_IS)
    np.testing.assert_array_equal(x, total)


@reaching
@pytest.mark.needs_ranks(2)
def test_only_some_ranks_want_the_sum(comm: Communicator, sums: StraightSums) -> None:
    x = np.arange(100, dtype='f4') * (comm.rank + 1)
    for root in range(comm.size):
        into = np.full(100, -1, 'f4') if comm.rank == root else None
        sums.sum_flat(x, into, AS_IT_IS)
        if into is not None:
            np.testing.assert_array_equal(into, np.arange(100) * sum(range(1, comm.size + 1)))
    np.testing.assert_array_equal(x, np.arange(100, dtype='f4') * (comm.rank + 1))


@reaching
@pytest.mark.needs_ranks(2)
def test_plans_are_forgotten(comm: Communicator, sums: StraightSums) -> None:
    for n in range(1, 250):
        x, into = np.ones(n), np.zeros(n)
        sums.sum_flat(x, into, AS_IT_IS)
        assert (into == comm.size).all()
    assert len(sums._kept) <= 100


# --- what goes wrong -----------------------------------------------------------------------------


@reaching
@pytest.mark.limit(20)
@pytest.mark.needs_ranks(2)
def test_a_rank_that_cannot_be_reached_is_an_error_of_all(
    comm: Communicator, sums: StraightSums
) -> None:
    """The last rank takes another for a process that has ended."""
    x = np.ones(1000)
    found = sums.plan([x.shape], x.dtype)
    sums.sum(found, [x], AS_IT_IS)
    if comm.rank == comm.size - 1:
        gone = subprocess.Popen([sys.executable, '-c', ''])
        gone.wait()
        sums._peers._pids[0] = gone.pid
    with pytest.raises(TransportError) as raised:
        sums.sum(found, [x], AS_IT_IS)
    assert not any(memory[0][0] is x for memory in peer_memory._lent.values())
    if comm.rank == comm.size - 1:
        assert f'the memory of rank 0, process {gone.pid}' in str(raised.value)
        assert 'No such process' in str(raised.value)
        assert 'MNX_PEER_MEMORY=0' in str(raised.value)
    else:
        assert f'rank {comm.size - 1} could not reach' in str(raised.value)


@reaching
@pytest.mark.limit(20)
@pytest.mark.needs_ranks(2)
def test_what_others_may_still_write_to_is_kept(
    comm: Communicator, sums: StraightSums, monkeypatch
) -> None:
    """A signal ends the wait of one rank before the others have written there."""
    x = np.ones(1000)
    ranks = sums._ranks
    if comm.rank == 0:
        monkeypatch.setattr(sums, '_ranks', Interrupted(ranks))
        with pytest.raises(KeyboardInterrupt):
            sums.sum(sums.plan([x.shape], x.dtype), [x], AS_IT_IS)
        ranks.find_largest(np.zeros(1, np.int64))  # where the others wait
    else:
        sums.sum(sums.plan([x.shape], x.dtype), [x], AS_IT_IS)
    del sums  # with which it must not go
    lent = [memory for memory in peer_memory._lent.values() if memory[0][0] is x]
    assert len(lent) == (comm.rank == 0)


class Interrupted:
    """A transport in which a signal comes when the ranks meet."""

    def __init__(self, ranks: object) -> None:
        self.rank, self.size, self.all_gather = ranks.rank, ranks.size, ranks.all_gather

    def find_largest(self, words: np.ndarray) -> None:
        raise KeyboardInterrupt


# --- where it goes -------------------------------------------------------------------------------


def gradients(comm: Communicator, dtype: str = 'f4') -> chainer.Link:
    model = chainer.Link()
    with model.init_scope():
        model.p = chainer.Parameter(np.zeros(30_000, dtype))
    model.p.grad = np.full(30_000, comm.rank, dtype)
    return model


@reaching
@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('case', ['plain', 'weighted', 'half', 'cast', 'short'])
def test_which_gradients_go_straight(comm: Communicator, monkeypatch, case: str) -> None:
    went: list[int] = []
    method = StraightSums.sum
    monkeypatch.setattr(StraightSums, 'sum', lambda *args: (went.append(1), method(*args))[1])
    if case == 'short':
        monkeypatch.setattr(two_dimensional, 'STRAIGHT_FROM', 120_001)
    config = {'allreduce_grad_dtype': 'float64'} if case == 'cast' else {}
    with testing.create_on_nodes('two_dimensional', [comm.size], **config) as made:
        model = gradients(comm, 'f2' if case == 'half' else 'f4')
        weight = 1.0 + comm.rank if case == 'weighted' else None
        made.multi_node_mean_grad(model, weight=weight)
        weights = np.arange(1.0, comm.size + 1) if weight else None
        expected = np.average(np.arange(comm.size), weights=weights)
        np.testing.assert_allclose(model.p.grad, expected, rtol=1e-3 if case == 'half' else 1e-6)
    assert bool(went) == (case == 'plain')


@pytest.fixture
def went(monkeypatch) -> list[str]:
    """Which ways the sums went."""
    names: list[str] = []
    for owner in (StraightSums, two_dimensional.NodeWindow):
        method, name = owner.sum, owner.__name__
        monkeypatch.setattr(
            owner, 'sum', lambda *args, m=method, n=name: (names.append(n), m(*args))[1]
        )
    return names


@pytest.mark.needs_ranks(2)
def test_both_ways_take_turns(comm: Communicator, went: list[str]) -> None:
    """And give the same bits."""
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        rng = np.random.default_rng(comm.rank)
        given = rng.standard_normal(30_000).astype('f4')
        bits, model = set(), gradients(comm)
        for _ in range(20):
            model.p.grad[...] = given
            made.multi_node_mean_grad(model)
            bits.add(model.p.grad.tobytes())
    assert len(bits) == 1
    assert went == comm.bcast_obj(went)
    assert set(went) == ({'StraightSums', 'NodeWindow'} if may_reach_others() else {'NodeWindow'})


@reaching
@pytest.mark.limit(20)
@pytest.mark.needs_ranks(2)
def test_all_choose_alike_whatever_their_clocks_say(
    comm: Communicator, went: list[str], monkeypatch
) -> None:
    """The first rank finds one way the quicker one, the others the other."""
    quick = 'StraightSums' if comm.rank == 0 else 'NodeWindow'
    clock = [0]

    def now() -> int:
        ends = clock[0] % 2 == 1
        clock[0] += 1
        return 10**9 * clock[0] + (1 if ends and went[-1] == quick else 0 if not ends else 10**6)

    monkeypatch.setattr(two_dimensional, 'perf_counter_ns', now)
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        model = gradients(comm)
        for _ in range(20):
            made.multi_node_mean_grad(model)
    assert comm.allgather_obj(went) == [went] * comm.size


@reaching
@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('quick', ['StraightSums', 'NodeWindow'])
def test_the_quicker_way_is_taken(
    comm: Communicator, went: list[str], monkeypatch, quick: str
) -> None:
    clock = [0]

    def now() -> int:
        """Return the time, in ns; each sum takes 1000, by the quick way 500."""
        clock[0] += 1
        ends = clock[0] % 2 == 0
        begun = 10**6 * ((clock[0] + 1) // 2)
        return begun + (500 if ends and went[-1] == quick else 1000 if ends else 0)

    monkeypatch.setattr(two_dimensional, 'perf_counter_ns', now)
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        model = gradients(comm)
        for _ in range(20):
            made.multi_node_mean_grad(model)
    assert set(went[:8]) == {'StraightSums', 'NodeWindow'}
    assert set(went[8:]) == {quick}


@reaching
@pytest.mark.limit(20)
@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('case', ['missing', 'subclass', 'copied'])
def test_a_gradient_that_was_odd_on_one_rank(comm: Communicator, case: str) -> None:
    """In some steps; what that rank remembers of its model is new then, but not of times."""
    last = comm.rank == comm.size - 1
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        model = gradients(comm)
        for step in range(12):
            model.p.grad = np.full(30_000, step + comm.rank, 'f4')
            if step % 3 == 1 and last and case == 'subclass':
                model.p.grad = model.p.grad.view(np.memmap)
            if step % 3 == 1 and last and case == 'copied':
                model = copy.deepcopy(model)
            if step % 3 == 1 and case == 'missing':
                model.p.grad = None if last else model.p.grad
                with pytest.raises(MismatchError):
                    made.multi_node_mean_grad(model)
                continue
            made.multi_node_mean_grad(model)
            np.testing.assert_allclose(model.p.grad, step + (comm.size - 1) / 2, rtol=1e-6)


@pytest.mark.needs_ranks(2)
def test_a_kind_of_gradients_that_comes_again_is_remembered(comm: Communicator) -> None:
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        for _ in range(9):
            made.multi_node_mean_grad(gradients(comm))  # another model each time
        assert len(made._trials) == may_reach_others()
        for n in range(two_dimensional.KINDS_KEPT + 5):
            model = chainer.Link()
            with model.init_scope():
                model.p = chainer.Parameter(np.zeros(30_000 + n, 'f4'))
            model.p.grad = np.full(30_000 + n, comm.rank, 'f4')
            made.multi_node_mean_grad(model)
        assert len(made._trials) <= two_dimensional.KINDS_KEPT


@reaching
@pytest.mark.needs_ranks(2)
def test_arrays_of_about_one_length_are_of_a_kind(comm: Communicator) -> None:
    """Both ways are not tried anew for each of them."""
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        for size in range(2**15, 2**15 + 40):
            x = np.arange(size, dtype='f4') + comm.rank
            total = comm.size * np.arange(size, dtype='f4') + sum(range(comm.size))
            np.testing.assert_array_equal(made.allreduce(x), total)
        assert len(made._trials) == 1
        made.allreduce(np.ones(2**16, 'f4'))
        made.reduce(np.ones(2**15, 'f4'))
        assert len(made._trials) == 3


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('reaches', ['1', '0'])
def test_a_gradient_that_may_not_be_written(comm: Communicator, monkeypatch, reaches: str) -> None:
    """On one rank: it stays as it is, and the parameter gets another one."""
    monkeypatch.setenv('MNX_PEER_MEMORY', reaches)
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        model = gradients(comm)
        for step in range(6):
            given = np.full(30_000, step + comm.rank, 'f4')
            given.flags.writeable = comm.rank != 1 or step % 2 == 0
            model.p.grad = given
            made.multi_node_mean_grad(model)
            np.testing.assert_allclose(model.p.grad, step + (comm.size - 1) / 2, rtol=1e-6)
            if not given.flags.writeable:
                assert (given == step + comm.rank).all()


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('reaches', ['1', '0'])
def test_another_dtype_of_exchange_from_call_to_call(
    comm: Communicator, monkeypatch, reaches: str
) -> None:
    monkeypatch.setenv('MNX_PEER_MEMORY', reaches)
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        model = gradients(comm)
        for step, dtype in enumerate([None, 'float64', 'float32', 'float16'] * 2):
            made.set_config('allreduce_grad_dtype', dtype)
            for value in (step, 3e38):  # two of which are too much for float32
                model.p.grad[...] = value
                made.multi_node_mean_grad(model)
                fits = value == step or dtype == 'float64'
                np.testing.assert_allclose(model.p.grad, value if fits else np.inf, rtol=1e-6)


@reaching
@pytest.mark.needs_ranks(2)
def test_arrays_of_one_length_and_two_dtypes(comm: Communicator, sums: StraightSums) -> None:
    for dtype in ('f4', 'f8', 'f4'):
        x, into = np.full(100, comm.rank, dtype), np.zeros(100, dtype)
        sums.sum_flat(x, into, AS_IT_IS)
        assert (into == sum(range(comm.size))).all()
        rows, into = np.full((comm.size, 100), comm.rank, dtype), np.zeros(100, dtype)
        sums.sum_rows(rows, into, AS_IT_IS)
        assert (into == sum(range(comm.size))).all()


@pytest.mark.needs_ranks(2)
def test_without_checks_nobody_writes_elsewhere(comm: Communicator, went: list[str]) -> None:
    """A gradient may be longer on one rank than on another there."""
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        made.meetings.checks = False
        for _ in range(3):
            made.multi_node_mean_grad(gradients(comm))
    assert set(went) == {'NodeWindow'}
