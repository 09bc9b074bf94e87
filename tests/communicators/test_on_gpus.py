"""Arrays that are not on the host, in communicators that carry them by NCCL or through the host.

Without a GPU: `nccl_on_host` stands for CuPy and NCCL. MPI itself is never given such an array.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import chainer
import numpy as np
import pytest

from mnx.arrays import Array
from mnx.communicators import Communicator, two_dimensional
from mnx.communicators.endpoint import Config
from mnx.communicators.factory import COMMUNICATORS
from mnx.communicators.flat import FlatCommunicator
from mnx.communicators.nccl import NcclCommunicator
from mnx.errors import ArgumentError, MismatchError
from mnx.transports import mpi
from mnx.transports.base import Channels, Transport
from mnx.transports.devices import Devices
from mnx.transports.host_staged import HostStagedTransport
from mnx.transports.layer import LayeredChannels
from mnx.transports.nccl import NcclTransport
from tests.transports.nccl_on_host import HostLibrary, cupy_on_host, far, is_far, new_memory
from tests.transports.test_layer import Guarded


def staged(below: Transport) -> Transport:
    return HostStagedTransport(below, allocate=new_memory)


@pytest.fixture
def library() -> HostLibrary:
    return HostLibrary(pytest.importorskip('mpi4py.MPI'))


@pytest.fixture(params=['nccl', 'staged', 'non_cuda_aware', 'hierarchical', 'two_dimensional'])
def gpus(
    request: pytest.FixtureRequest,
    comm: Communicator,
    library: HostLibrary,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Communicator]:
    """A communicator whose ranks are on nodes of two, or all on one for NCCL alone."""
    monkeypatch.setitem(sys.modules, 'cupy', cupy_on_host())
    monkeypatch.setattr(mpi, 'MpiTransport', Guarded)
    monkeypatch.setattr(
        'mnx.communicators.two_dimensional.NcclTransport',
        lambda below: NcclTransport(below, lambda: library),
    )
    channels = mpi.MpiChannels(host=f'node{comm.rank // 2}')
    config = Config(batched_copy=False)
    if request.param == 'nccl':
        made: Communicator = NcclCommunicator(by_nccl(channels, library), config)
    elif request.param == 'staged':
        made = FlatCommunicator(LayeredChannels(channels, staged), config)
    else:
        seen = [Devices((f'gpu {rank}',), 23203) for rank in range(comm.size)]
        monkeypatch.setattr(two_dimensional.devices, 'survey', lambda control: seen)
        made = COMMUNICATORS[request.param](LayeredChannels(channels, staged), config)
    yield made
    made.finalize()


def by_nccl(channels: Channels, library: HostLibrary) -> Channels:
    return LayeredChannels(channels, lambda t: NcclTransport(staged(t), lambda: library))


def data(rank: int, dtype: str = 'f4') -> Array:
    return far((np.arange(12).reshape(3, 4) * 3 + rank).astype(dtype))


def check(x: Array, expected: Array) -> None:
    assert is_far(x)
    assert x.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(expected))


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'i2', 'i8', 'c8', '?'])
def test_reductions_stay_where_the_arrays_are(gpus: Communicator, dtype: str) -> None:
    n, rank = gpus.size, gpus.rank
    parts = [data(r, dtype) for r in range(n)]
    total = np.sum([p.astype('f4') if dtype == 'f2' else p for p in parts], axis=0).astype(dtype)
    check(gpus.allreduce(parts[rank]), total)
    check(gpus.start_allreduce(parts[rank]).wait(), total)
    reduced = gpus.reduce(parts[rank], root=n - 1)
    assert (reduced is not None) == (rank == n - 1)
    if reduced is not None:
        check(reduced, total)
    check(gpus.reduce_scatter([parts[rank]] * n), total)


def test_reduce_scatter_of_several_dtypes(gpus: Communicator) -> None:
    dtypes = [('f8', 'f4')[r % 2] for r in range(gpus.size)]
    found = gpus.reduce_scatter([data(gpus.rank, dtype) for dtype in dtypes])
    check(found, sum(data(r) for r in range(gpus.size)).astype(dtypes[gpus.rank]))


def test_copies_stay_where_the_arrays_are(gpus: Communicator) -> None:
    n, rank = gpus.size, gpus.rank
    for root in range(n):
        check(gpus.bcast(data(rank) if rank == root else None, root), data(root))
        rows = [data(10 + r)[:r] for r in range(n)] if rank == root else None
        check(gpus.scatter(rows, root), data(10 + rank)[:rank])
        for r, x in enumerate(gpus.gather(data(rank)[: rank + 1], root) or ()):
            check(x, data(r)[: r + 1])
    for r, x in enumerate(gpus.allgather(data(rank)[:rank])):
        check(x, data(r)[:r])
    for r, x in enumerate(gpus.alltoall([data(10 * rank + r)[:, r:] for r in range(n)])):
        check(x, data(10 * r + rank)[:, rank:])


@pytest.mark.parametrize('size', [0, 5, 20_000], ids=['empty', 'short', 'long'])
def test_messages_stay_where_the_arrays_are(gpus: Communicator, size: int) -> None:
    n, rank = gpus.size, gpus.rank

    def pair(r: int) -> tuple[Array, Array]:
        return far(np.arange(size) + float(r)), far(np.full(3, r, 'i1'))

    for turn in range(n):
        if rank == turn:
            gpus.send(pair(rank), (rank + 1) % n, 4)
        if rank == (turn + 1) % n:
            for x, expected in zip(gpus.recv(turn, 4), pair(turn), strict=True):
                check(x, expected)


def test_arrays_on_the_host_stay_there(gpus: Communicator) -> None:
    x = np.arange(5.0) + gpus.rank
    total = gpus.allreduce(x)
    assert not is_far(total)
    np.testing.assert_array_equal(total, gpus.size * np.arange(5) + sum(range(gpus.size)))
    assert not any(is_far(y) for y in gpus.allgather(x))
    assert not is_far(gpus.bcast(x))


@pytest.mark.needs_ranks(2)
def test_ranks_with_arrays_in_different_places_all_raise(gpus: Communicator) -> None:
    x = np.zeros(3)
    x = far(x) if gpus.rank == 0 else x
    for call in (gpus.allreduce, gpus.allgather, gpus.gather):
        with pytest.raises(MismatchError, match='on a GPU'):
            call(x)
    with pytest.raises(ArgumentError, match='some are CuPy'):
        gpus.alltoall([far(np.zeros(1)), *[np.zeros(1)] * (gpus.size - 1)])


SHAPES = [(3, 4), (70,), (), (2, 0), (5, 5)]


def model_of(rank: int, dtype: str, place: str = 'gpu') -> chainer.Link:
    model = chainer.Link()
    with model.init_scope():
        for i, shape in enumerate(SHAPES):
            setattr(model, f'p{i}', chainer.Parameter(np.zeros(shape, dtype)))
    for i, param in enumerate(model.params()):
        rng = np.random.default_rng(100 * rank + i)
        grad = rng.integers(-9, 9, param.shape).astype(dtype)
        param._grad = far(grad) if place == 'gpu' else grad
    return model


@pytest.mark.parametrize('weighted', [False, True], ids=['equal', 'weighted'])
@pytest.mark.parametrize('place', ['cpu', 'gpu'])
@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8'])
def test_the_mean_of_gradients(gpus: Communicator, dtype: str, place: str, weighted: bool) -> None:
    model = model_of(gpus.rank, dtype, place)
    weights = np.arange(gpus.size) + 1.0 if weighted else np.ones(gpus.size)
    gpus.multi_node_mean_grad(model, weight=weights[gpus.rank] if weighted else None)
    everyone = [list(model_of(r, dtype).params()) for r in range(gpus.size)]
    rtol = {'f2': 1e-3, 'f4': 1e-6, 'f8': 1e-14}[dtype]
    for i, param in enumerate(model.params()):
        grads = [np.asarray(params[i]._grad).astype('f8') for params in everyone]
        mean = np.average(grads, axis=0, weights=weights)
        assert is_far(param._grad) == (place == 'gpu')
        assert param._grad.dtype == dtype
        np.testing.assert_allclose(np.asarray(param._grad), mean, rtol=rtol, atol=9 * rtol)


def test_nccl_sums_in_the_node(gpus: Communicator, library: HostLibrary) -> None:
    """And only there, but for `nccl` itself; `flat` asks MPI for all of it."""
    gpus.multi_node_mean_grad(model_of(gpus.rank, 'f4'))
    called = set(library.nccl.calls)
    if gpus.name == 'flat' or gpus.size == 1:
        expected = set()
    elif gpus.name == 'nccl' or gpus.inter_size == 1:
        expected = {'allReduce'}
    elif gpus.intra_size == gpus.owners():  # equal shares: the number of elements is even
        expected = {'reduceScatter', 'allGather'}
    else:
        expected = {'reduce', 'broadcast'}
    assert called == expected


def test_the_dtype_that_travels(
    comm: Communicator, library: HostLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL adds up float16 itself, where that was asked for; elsewhere float32 does."""
    monkeypatch.setitem(sys.modules, 'cupy', cupy_on_host())
    sums: list[str] = []

    class Noted(NcclCommunicator):
        def sum_buffer(self, buffer: Array) -> None:
            sums.append(buffer.dtype.name)

    for asked in (None, 'float16', 'float32', 'float64'):
        for place in ('gpu', 'cpu'):
            dtype = None if asked is None else np.dtype(asked)
            with Noted(by_nccl(mpi.MpiChannels(), library), Config(dtype, False)) as made:
                made.multi_node_mean_grad(model_of(comm.rank, 'f2', place))
    if comm.size > 1:
        assert sums[:2] == ['float32', 'float32']
    assert sums[-6:] == ['float16', 'float32', 'float32', 'float32', 'float64', 'float64']


def test_parts_of_the_ranks(gpus: Communicator) -> None:
    members = [r for r in range(gpus.size) if r % 2 == gpus.rank % 2]
    part = gpus.split(gpus.rank % 2, gpus.rank)
    check(part.allreduce(data(gpus.rank)), sum(data(r) for r in members).astype('f4'))


def test_parameters_of_the_first_rank(gpus: Communicator) -> None:
    named = [(str(i), data(gpus.rank, d)) for i, d in enumerate(['f4', 'f2', 'i4', 'f4'])]
    gpus.bcast_into(named, gpus.size - 1)
    for (_, x), dtype in zip(named, ['f4', 'f2', 'i4', 'f4'], strict=True):
        check(x, data(gpus.size - 1, dtype))
