"""Gradients larger than the window, in every dtype, on every kind of node."""

from __future__ import annotations

import functools
import itertools
import time

import chainer
import numpy as np
import pytest

from mnx import kernels, testing
from mnx.communicators import Communicator, two_dimensional
from mnx.communicators.model_messages import Scaling
from mnx.communicators.node_window import KEPT, NodeWindow
from mnx.communicators.straight_sums import StraightSums
from mnx.communicators.two_dimensional import AcrossNodes
from mnx.errors import TransportError
from tests.peers import may_reach_others

pytestmark = pytest.mark.usefixtures('way')

WAYS = ['straight', 'window', 'numpy']


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch) -> str:
    """Straight between processes, where all may; or through the window, summed by C or NumPy."""
    monkeypatch.setattr(two_dimensional, 'STRAIGHT_FROM', 0)
    if request.param != 'straight':
        monkeypatch.setenv('MNX_PEER_MEMORY', '0')
    if request.param == 'numpy':
        request.getfixturevalue('without_kernels')
    return request.param


def model_with(sizes: list[int], dtypes: list[str], rank: int) -> chainer.Link:
    model = chainer.Link()
    rng = np.random.default_rng(rank)
    with model.init_scope():
        for i, size in enumerate(sizes):
            dtype = dtypes[i % len(dtypes)]
            setattr(model, f'p{i}', chainer.Parameter(np.zeros(size, dtype)))
            model.__dict__[f'p{i}'].grad = rng.standard_normal(size).astype(dtype)
    return model


@pytest.mark.parametrize('chunk', [256, 4096])
@pytest.mark.parametrize('dtypes', [['f4'], ['f8', 'f4'], ['f8', 'f4', 'f2']], ids=str)
@pytest.mark.parametrize('name', ['hierarchical', 'two_dimensional'])
def test_many_chunks(
    comm: Communicator, monkeypatch, name: str, dtypes: list[str], chunk: int
) -> None:
    """Short chunks: many of them, arrays that go over several, chunks that hold several."""
    monkeypatch.setattr(two_dimensional, 'WINDOW_FROM_IN_NODE', 0)
    monkeypatch.setattr(two_dimensional, 'WINDOW_FROM_ACROSS_NODES', 0)
    monkeypatch.setattr(two_dimensional, 'STRAIGHT_CHUNK', chunk)
    monkeypatch.setattr(two_dimensional, 'CHUNK_IN_NODE', chunk)
    monkeypatch.setattr(two_dimensional, 'CHUNK_ACROSS_NODES', chunk)
    sizes = [100, 3, 0, 17, 1500, 1, 64]
    for nodes in ([comm.size], [1], [2], [3, 1]):
        with testing.create_on_nodes(name, nodes) as made:
            model = model_with(sizes, dtypes, comm.rank)
            expected = [
                np.mean([m.__dict__[f'p{i}'].grad.astype('f8') for m in everyone], axis=0)
                for i in range(len(sizes))
                for everyone in [[model_with(sizes, dtypes, r) for r in range(comm.size)]]
            ]
            seen = set()
            for _ in range(3):  # windows and views are kept; two ways take turns
                for i, p in enumerate(model_with(sizes, dtypes, comm.rank).params()):
                    getattr(model, f'p{i}').grad[...] = p.grad
                made.multi_node_mean_grad(model)
                for i, mean in enumerate(expected):
                    grad = getattr(model, f'p{i}').grad
                    eps = np.finfo(grad.dtype).eps
                    np.testing.assert_allclose(grad, mean, rtol=4 * eps, atol=4 * eps)
                    bits = comm.allgather_obj(grad.tobytes())
                    assert len(set(bits)) == 1
                    seen.add((i, bits[0]))
            assert len(seen) == len(sizes)


@pytest.mark.parametrize('weighted', [False, True])
def test_a_parameter_with_two_names(training_comm: Communicator, weighted: bool) -> None:
    """Tied weights, two chunks of the window apart: old and new values must not be mixed."""
    comm = training_comm
    tied = chainer.Parameter(np.zeros(2 * 262_144 - 1000, 'f4'))
    model = chainer.Link()
    with model.init_scope():
        model.a, model.m, model.z = tied, chainer.Parameter(np.zeros(1000, 'f4')), tied
    for param in model.params():
        param.grad = np.full(param.shape, 1.0 + comm.rank, 'f4')
    weights = np.arange(1.0, comm.size + 1)
    weight = weights[comm.rank] if weighted else None
    comm.multi_node_mean_grad(model, weight=weight)
    ranks = np.arange(1.0, comm.size + 1)
    expected = np.average(ranks, weights=weights if weighted else None)
    for param in model.params():
        np.testing.assert_allclose(param.grad, expected, rtol=1e-6)


BORDERS = [  # of arrays, shares and chunks, in every order
    [(1,)],
    [(16,)],
    [(3,), (), (2, 2), (1, 1), (5,)],
    [(100,), (7,), (0, 3), (1,), (64,), (33,)],
    [(2,)] * 40,
]


@pytest.mark.needs_ranks(2)
@pytest.mark.skipif(not kernels.built, reason='there is no kernel')
@pytest.mark.parametrize('dtype', ['f4', 'f8'])
@pytest.mark.parametrize('chunk', [64, 96, 1024])
@pytest.mark.parametrize('by_c', ['all', 'none', 'even ranks', 'the last rank'])
@pytest.mark.parametrize('way', ['window'], indirect=True)
def test_ranks_may_sum_by_c_or_by_python(
    comm: Communicator, by_c: str, chunk: int, dtype: str
) -> None:
    """To the same bits, with each other, in place or into other arrays, which not all want."""
    rank, size = comm.rank, comm.size
    in_c = {'all': True, 'even ranks': rank % 2 == 0, 'the last rank': rank == size - 1}
    window = NodeWindow(comm.groups.intra, size, chunk)
    rng = np.random.default_rng(7)
    for shapes, divisor in itertools.product(BORDERS, (1.0, 4.0, 3.0)):
        parts = [
            [rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(size)
        ]
        expected = [
            functools.reduce(np.add, xs) / np.dtype(dtype).type(divisor)
            for xs in zip(*parts, strict=True)
        ]
        steps = AcrossNodes(Scaling(1.0, divisor), None, None, size)
        plan = window.plan(shapes, np.dtype(dtype))
        for into in ('itself', 'others', 'of one rank'):
            given = [x.copy() for x in parts[rank]]
            wants = into != 'of one rank' or rank == divisor % size
            targets = [np.zeros_like(x) for x in given] if wants else []
            targets = given if into == 'itself' else targets
            if in_c.get(by_c):
                assert window._sum_in_c(plan, given, targets, steps)
            else:
                window._sum_in_python(plan, given, steps, None if into == 'itself' else targets)
            for found, right in zip(targets, expected, strict=False):
                assert found.tobytes() == right.tobytes()
            if into != 'itself':
                assert all(
                    x.tobytes() == y.tobytes() for x, y in zip(given, parts[rank], strict=True)
                )
    window.close()


@pytest.mark.needs_ranks(2)
@pytest.mark.skipif(not kernels.built, reason='there is no kernel')
@pytest.mark.parametrize('way', ['window', 'numpy'], indirect=True)
def test_what_goes_by_c(comm: Communicator, monkeypatch, way: str) -> None:
    """Plain arrays that are only added and divided; all else by Python, to the same sums."""
    went: list[bool] = []
    method = NodeWindow._sum_in_c
    monkeypatch.setattr(NodeWindow, '_sum_in_c', lambda *a: (went.append(method(*a)), went[-1])[1])
    monkeypatch.setattr(two_dimensional, 'WINDOW_FROM_IN_NODE', 0)
    monkeypatch.setattr(two_dimensional, 'WINDOW_FROM_ACROSS_NODES', 0)

    def goes_by_c(dtype: str, **options: object) -> set[bool]:
        went.clear()
        model = model_with([500, 30], [dtype], comm.rank)
        if options.pop('strided', False):
            model.p0.grad = np.repeat(model.p0.grad, 2)[::2]
        weight = options.pop('weight', None)
        with testing.create_on_nodes('two_dimensional', [comm.size], **options) as made:
            made.multi_node_mean_grad(model, weight=weight)
        return set(went)

    assert goes_by_c('f4') == goes_by_c('f8') == {way == 'window'}
    assert goes_by_c('f2') == goes_by_c('c8') == {False}
    assert goes_by_c('f4', strided=True) == {False}
    assert goes_by_c('f4', allreduce_grad_dtype='float64') == {False}
    has_largest = comm.rank == comm.size - 1  # weights are relative to that one's
    assert goes_by_c('f4', weight=1.0 + comm.rank) == {way == 'window' and has_largest}


@pytest.mark.limit(20)
@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('way', ['window'], indirect=True)
@pytest.mark.parametrize('looks', [1, -2])
def test_a_rank_may_be_late_in_every_chunk(comm: Communicator, looks: int) -> None:
    """The others come back from C to wait, and go on where they were."""
    window = NodeWindow(comm.groups.intra, comm.size, 64)
    window._window.looks = looks
    x = numbers(comm.rank, 200, 'f4')
    plan = window.plan([x.shape], x.dtype)
    wait, waited = window._window.wait, []
    window._window.wait = lambda: (waited.append(1), wait())  # type: ignore[method-assign]
    if comm.rank == comm.size - 1:
        arrive = window._window.arrive
        window._window.arrive = lambda: (time.sleep(0.02), arrive())  # type: ignore[method-assign]
        window._sum_in_python(plan, [x], AcrossNodes(Scaling(1.0, 1.0), None, None, 1), None)
    else:
        window.sum(plan, [x], AcrossNodes(Scaling(1.0, 1.0), None, None, 1))
        if kernels.built:
            assert 'chunks' not in vars(plan)  # as the loop in Python needs them
            assert len(waited) >= (10 if looks == 1 else 1)  # of 14 turns
    np.testing.assert_array_equal(x, sum(numbers(r, 200, 'f4') for r in range(comm.size)))
    window.close()


@pytest.mark.limit(20)
@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('way', ['window'], indirect=True)
@pytest.mark.parametrize('in_c', [True, False])
def test_a_sum_after_one_that_was_interrupted(comm: Communicator, in_c: bool) -> None:
    """The ranks may have stopped at different turns: an error, and no wrong sum."""
    window = NodeWindow(comm.groups.intra, comm.size, 64)
    x = numbers(comm.rank, 200, 'f4' if in_c else 'i4')
    plan, steps = window.plan([x.shape], x.dtype), AcrossNodes(Scaling(1.0, 1.0), None, None, 1)
    wait = window._window.wait

    def interrupted() -> None:
        raise KeyboardInterrupt

    window._window.wait = interrupted  # type: ignore[method-assign]
    if comm.rank == 0:
        with pytest.raises(KeyboardInterrupt):
            window.sum(plan, [x], steps)  # nobody else has come
    window._window.wait = wait  # type: ignore[method-assign]
    if comm.rank == 0:
        with pytest.raises(TransportError, match='interrupted'):
            window.sum(plan, [x], steps)
    comm.barrier()
    window.close()


@pytest.mark.parametrize('way', ['window'], indirect=True)
def test_plans_of_single_arrays_are_forgotten(comm: Communicator) -> None:
    window = NodeWindow(comm.groups.intra, comm.size, 64)
    for size in range(16, 16 * 100, 16):  # of 100 chunks at most
        x = np.ones(size, 'i4')
        window.sum_flat(x, np.empty_like(x), AcrossNodes(Scaling(1.0, 1.0), None, None, 1))
        assert sum(len(plan.chunks) for plan in window._plans.values()) <= KEPT + 100
    assert 1 < len(window._plans) < 50
    window.close()


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('way', ['window'], indirect=True)
@pytest.mark.parametrize(
    'nodes', [[9], pytest.param([2], marks=pytest.mark.needs_ranks(3))], ids=str
)
def test_from_which_length_on(comm: Communicator, monkeypatch, nodes: list[int]) -> None:
    """On one node shorter ones than across nodes."""
    went: list[int] = []
    method = NodeWindow.sum
    monkeypatch.setattr(NodeWindow, 'sum', lambda *a: (went.append(1), method(*a))[1])
    with testing.create_on_nodes('two_dimensional', nodes) as made:
        gradients_from, array_from = (8, 16) if made.inter_size == 1 else (32, 512)  # KiB
        for size in (gradients_from * 256 - 1, gradients_from * 256):
            made.multi_node_mean_grad(model_with([size], ['f4'], comm.rank))
            assert len(went) == (size == gradients_from * 256)
        went.clear()
        for size in (array_from * 256 - 1, array_from * 256):
            made.allreduce(np.ones(size, 'f4'))
            assert len(went) == (size == array_from * 256)


def test_same_bits_from_run_to_run(comm: Communicator) -> None:
    with testing.create_on_nodes('two_dimensional', [2]) as made:
        results = []
        for _ in range(5):
            model = model_with([300_001], ['f4'], comm.rank)
            made.multi_node_mean_grad(model)
            results.append(model.p0.grad.tobytes())
        assert len(set(results)) == 1


@pytest.fixture(params=[256, 4096])
def for_all(request: pytest.FixtureRequest, monkeypatch) -> None:
    """Arrays of any length go that way, chunk by chunk."""
    monkeypatch.setattr(two_dimensional, 'ARRAY_FROM_IN_NODE', 1)
    monkeypatch.setattr(two_dimensional, 'ARRAY_FROM_ACROSS_NODES', 1)
    monkeypatch.setattr(two_dimensional, 'ROWS_FROM', 1)
    monkeypatch.setattr(two_dimensional, 'STRAIGHT_CHUNK', request.param)
    monkeypatch.setattr(two_dimensional, 'CHUNK_IN_NODE', request.param)
    monkeypatch.setattr(two_dimensional, 'CHUNK_ACROSS_NODES', request.param)


def numbers(rank: int, size: int, dtype: str) -> np.ndarray:
    """Whole numbers: their sums are exact, in whatever order they are added."""
    x = (np.arange(size) * 7 + rank * 3) % 11
    return (x * (1 - 2j) if dtype.startswith('c') else x).astype(dtype)


@pytest.mark.parametrize('dtype', ['f4', 'f8', 'f2', 'i4', 'c8', 'G'])
@pytest.mark.usefixtures('for_all')
def test_arrays_go_that_way(comm: Communicator, monkeypatch, way: str, dtype: str) -> None:
    went: list[str] = []
    straight = (StraightSums, 'sum_flat'), (StraightSums, 'sum_rows')
    for owner, name in ((NodeWindow, 'sum_flat'), *straight):
        method = getattr(owner, name)
        told = f'{owner.__name__}.{name}'
        monkeypatch.setattr(owner, name, lambda *a, m=method, t=told: (went.append(t), m(*a))[1])
    for nodes in ([comm.size], [2], [3, 1]):
        with testing.create_on_nodes('two_dimensional', nodes) as made:
            for size in (0, 5, 64, 65, 600, 600, 600):
                x = numbers(comm.rank, size, dtype)
                total = sum(numbers(r, size, dtype) for r in range(comm.size))
                np.testing.assert_array_equal(made.allreduce(x), total)
                if dtype.startswith('f'):
                    np.testing.assert_array_equal(made.allreduce(x, 'mean'), total / comm.size)
                for root in range(comm.size):
                    found = made.reduce(x, root=root)
                    if comm.rank == root:
                        np.testing.assert_array_equal(found, total)
                    assert (found is None) == (comm.rank != root)
                rows = x + np.arange(comm.size)[:, None].astype(dtype)
                whole = total + comm.size * np.arange(comm.size)[:, None]
                np.testing.assert_array_equal(made.reduce_scatter(rows), whole[comm.rank])
                np.testing.assert_array_equal(made.reduce_scatter(list(rows)), whole[comm.rank])
                np.testing.assert_array_equal(x, numbers(comm.rank, size, dtype))
    if comm.size > 1:
        goes_straight = way == 'straight' and dtype in ('f2', 'f4', 'f8') and may_reach_others()
        both = {f'{owner.__name__}.{name}' for owner, name in straight} if goes_straight else set()
        assert set(went) == {'NodeWindow.sum_flat', *both}
    else:
        assert not went


@pytest.mark.usefixtures('for_all')
def test_rows_of_unequal_length(comm: Communicator) -> None:
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        rows = [numbers(comm.rank, 100 + r, 'f4') for r in range(comm.size)]
        total = sum(numbers(r, 100 + comm.rank, 'f4') for r in range(comm.size))
        np.testing.assert_array_equal(made.reduce_scatter(rows), total)


@pytest.mark.usefixtures('for_all')
def test_arrays_have_the_same_bits_on_all_ranks(comm: Communicator) -> None:
    x = np.random.default_rng(comm.rank).standard_normal(5000).astype('f4')
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        bits = {made.allreduce(x).tobytes() for _ in range(3)}
        assert len(bits.union(*comm.allgather_obj(bits))) == 1
        everyone = np.stack(comm.allgather(x))
        (found,) = bits
        exact = everyone.astype('f8').sum(axis=0)
        np.testing.assert_allclose(np.frombuffer(found, 'f4'), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures('for_all')
def test_an_array_that_may_not_be_written(comm: Communicator) -> None:
    x = numbers(comm.rank, 500, 'f4')
    x.flags.writeable = False
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        total = sum(numbers(r, 500, 'f4') for r in range(comm.size))
        np.testing.assert_array_equal(made.allreduce(x), total)


@pytest.mark.limit(60)
@pytest.mark.usefixtures('for_all')
@pytest.mark.parametrize('dtype', ['f4', 'f8', 'g', 'c16'])
def test_an_overflow_is_no_error_of_one_rank(comm: Communicator, dtype: str) -> None:
    """MPI adds without a word; NumPy may be told to raise, where one rank adds its share."""
    x = np.ones(500, dtype)
    x[3] = np.finfo(dtype).max
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made, np.errstate(all='raise'):
        total = made.allreduce(x)
        model = chainer.Link()
        with model.init_scope():
            model.p = chainer.Parameter(np.zeros(500, 'f8'))
        model.p.grad = np.full(500, np.finfo('f8').max)
        made.multi_node_mean_grad(model)
    assert total[4] == comm.size
    assert np.isinf(total[3]) == np.isinf(model.p.grad[0]) == (comm.size > 1)


@pytest.mark.usefixtures('for_all')
def test_a_matrix_is_an_array(comm: Communicator) -> None:
    every = np.arange(400.0 * comm.size).reshape(comm.size, -1)
    with testing.create_on_nodes('two_dimensional', [comm.size]) as made:
        for _ in range(2):
            with pytest.warns(PendingDeprecationWarning):
                found = made.reduce_scatter(np.matrix(every + comm.rank))
            expected = comm.size * every[comm.rank] + sum(range(comm.size))
            np.testing.assert_array_equal(np.asarray(found).ravel(), expected)


@pytest.mark.limit(60)
@pytest.mark.parametrize('name', ['naive', 'flat', 'two_dimensional'])
@pytest.mark.parametrize('is_started', [False, True], ids=['mean', 'started'])
@pytest.mark.parametrize('case', ['weight', 'cast'])
def test_numpy_may_not_raise_on_one_rank(
    comm: Communicator, name: str, is_started: bool, case: str
) -> None:
    """A share that underflows, a gradient that overflows on its way to another dtype."""
    first = comm.rank == 0
    model = chainer.Link()
    with model.init_scope():
        model.p = chainer.Parameter(np.zeros(1000))
    small, weight = (1e-308, 0.3 if first else 1.0) if case == 'weight' else (1e300, None)
    model.p.grad = np.full(1000, small if first else 1.0)
    wire = None if case == 'weight' else 'float32'
    with testing.create_on_nodes(name, [comm.size], allreduce_grad_dtype=wire) as made:
        method = made.start_mean_grad if is_started else made.multi_node_mean_grad
        with np.errstate(all='raise'):
            pending = method(model, weight=weight)
            found = pending.wait()['/p'] if is_started else model.p.grad
    assert np.isinf(found).all() == (case == 'cast')


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('name', ['naive', 'flat', 'two_dimensional', 'dummy'])
@pytest.mark.parametrize('is_started', [False, True], ids=['mean', 'started'])
def test_numpy_may_not_raise_where_a_mean_is_rounded(
    comm: Communicator, name: str, is_started: bool
) -> None:
    """A mean of float16 that is too small to be exact."""
    model = chainer.Link()
    with model.init_scope():
        model.p = chainer.Parameter(np.zeros(10, 'f2'))
    model.p.grad = np.full(10, 6e-8 if comm.rank else 1.2e-7, 'f2')
    with testing.create_on_nodes(name, [comm.size]) as made, np.errstate(all='raise'):
        pending = (made.start_mean_grad if is_started else made.multi_node_mean_grad)(model)
        found = pending.wait()['/p'] if is_started else model.p.grad
    assert found.dtype == 'f2'
    if name != 'dummy':
        mean = (1.2e-7 + (comm.size - 1) * 6e-8) / comm.size
        np.testing.assert_allclose(found.astype('f8'), mean, rtol=0, atol=6e-8)


@pytest.mark.limit(60)
def test_a_result_that_overflows_on_one_rank(comm: Communicator) -> None:
    rows = np.ones((comm.size, 3), 'f2')
    rows[comm.size - 1] = 60000
    with np.errstate(all='raise'):
        found = comm.reduce_scatter(rows)
    last = comm.rank == comm.size - 1
    assert np.isinf(found).all() == (last and comm.size > 1)
