"""What NCCL is asked for, and when it cannot be: on `nccl_on_host`. On GPUs: the last test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import MissingPackageError, TransportError
from mnx.transports import mpi, nccl, waiting
from mnx.transports.base import FRAME_BYTES
from mnx.transports.host_staged import HostStagedTransport
from mnx.transports.nccl import NcclTransport, shared_devices
from tests.transports.nccl_on_host import HostLibrary, far, is_far, new_memory
from tests.transports.test_layer import data, equal


@pytest.fixture
def library() -> HostLibrary:
    return HostLibrary(pytest.importorskip('mpi4py.MPI'))


@pytest.fixture
def transport(library: HostLibrary) -> Iterator[NcclTransport]:
    world = mpi.MpiTransport(pytest.importorskip('mpi4py.MPI').COMM_WORLD)
    made = NcclTransport(HostStagedTransport(world, is_far, new_memory), lambda: library, is_far)
    yield made
    made.close()
    made.close()


def test_each_collective_is_the_one_of_nccl(transport: NcclTransport, library: HostLibrary) -> None:
    n, rank = transport.size, transport.rank
    x, y = data(rank, 6, True), far(np.zeros(6))

    def calls() -> list[str]:
        made, library.nccl.calls = library.nccl.calls, []
        return made

    transport.all_reduce(x)
    assert calls() == ['allReduce']
    transport.broadcast(x, n - 1)
    assert calls() == ['broadcast']
    transport.reduce(x, n - 1)
    assert calls() == ['reduce']
    transport.all_gather(x, far(np.zeros(6 * n)), [6] * n)
    assert calls() == ['allGather']
    transport.reduce_scatter(far(np.zeros(6 * n)), y, [6] * n)
    assert calls() == ['reduceScatter']
    if n > 1:
        transport.reduce_scatter(far(np.zeros(n + 1)), y[: 1 + (rank == 0)], [2] + [1] * (n - 1))
        assert calls() == ['reduce'] * n
    transport.all_to_all([x] * n, [y] * n)
    assert sorted(calls()) == sorted(['send', 'recv'] * (n - 1))
    transport.all_reduce(np.zeros(6))  # on the host
    transport.all_reduce(far(np.zeros(0)))
    assert calls() == []


@pytest.mark.parametrize(
    ('dtype', 'op', 'by_nccl'),
    [
        ('f4', 'prod', True),
        ('i8', 'max', True),
        ('u1', 'min', True),
        ('c8', 'sum', True),
        ('c16', 'sum', True),
        ('c16', 'prod', False),
        ('i2', 'sum', False),
        ('u2', 'max', False),
    ],
)
def test_dtypes_that_nccl_lacks_go_through_the_host(
    transport: NcclTransport, library: HostLibrary, dtype: str, op: str, by_nccl: bool
) -> None:
    parts = [
        (data(r, 7, False) * (1j if dtype[0] == 'c' else 1)).astype(dtype)
        for r in range(transport.size)
    ]
    buffer = far(parts[transport.rank].copy())
    transport.all_reduce(buffer, op)
    ufunc = {'sum': np.add, 'prod': np.multiply, 'max': np.maximum, 'min': np.minimum}[op]
    expected = ufunc.reduce(parts[: transport.size], dtype=dtype)
    np.testing.assert_allclose(np.asarray(buffer), expected, rtol=1e-6)
    assert bool(library.nccl.calls) == by_nccl


@pytest.mark.needs_ranks(2)
def test_messages_are_taken_by_their_tags(transport: NcclTransport) -> None:
    """NCCL knows none; a header by MPI comes first, and the receiver chooses among those."""
    n, rank = transport.size, transport.rank
    following, previous = (rank + 1) % n, (rank - 1) % n
    frame = bytearray(FRAME_BYTES)
    for tag in (5, 6):
        transport.send_frame(bytes([tag]), following, tag)
    for tag in (6, 5):
        transport.recv_frame(frame, previous, tag)
        assert frame[0] == tag
        turns = range(n)
        for turn in turns:
            if rank == turn:
                transport.send(data(10 * tag + rank, 9, True), following, tag)
            if rank == (turn + 1) % n:
                found = far(np.zeros(9))
                transport.recv(found, previous, tag)
                assert equal(found, data(10 * tag + previous, 9, False))


@pytest.mark.needs_ranks(2)
def test_two_ranks_with_one_gpu(transport: NcclTransport, library: HostLibrary) -> None:
    library._name = f'host {transport.rank // 2}'
    with pytest.raises(TransportError, match='ranks 0, 1 have the same GPU'):
        transport.all_reduce(data(0, 3, True))


def test_a_rank_whose_nccl_does_not_start(transport: NcclTransport, library: HostLibrary) -> None:
    last = transport.size - 1

    def fails() -> str:
        raise library.nccl.NcclError('no device')

    if transport.rank == last:
        library.device = fails  # type: ignore[method-assign]
    with pytest.raises(TransportError, match=f'rank {last}: NcclError: no device'):
        transport.all_reduce(data(0, 3, True))


def test_the_start_of_nccl_is_a_wait(
    transport: NcclTransport, library: HostLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog sees it, of all ranks and of a pair."""
    seen: list[object] = []
    create = library.nccl.NcclCommunicator

    def watched(*args: Any) -> Any:
        seen.append(waiting.longest())
        return create(*args)

    monkeypatch.setattr(library.nccl, 'NcclCommunicator', watched)
    transport.start()
    if transport.rank < 2 <= transport.size:
        transport._pair(1 - transport.rank)
    assert len(seen) == 1 + (transport.rank < 2 <= transport.size)
    assert None not in seen


def test_one_gpu_for_several_on_purpose() -> None:
    devices = ['a 0', 'a 1', 'a 0']
    assert 'ranks 0, 2' in shared_devices(devices, {})
    assert shared_devices(devices, {'NCCL_MULTI_RANK_GPU_ENABLE': '1'}) == ''
    assert shared_devices(devices, {'NCCL_HOSTID': '3'}) == ''


def test_without_cupy_an_array_on_the_host_still_travels(comm: Communicator) -> None:
    world = mpi.MpiTransport(pytest.importorskip('mpi4py.MPI').COMM_WORLD)

    def no_cupy() -> None:
        raise ImportError("No module named 'cupy'")

    transport = NcclTransport(world, no_cupy, is_far)
    buffer = np.full(3, float(comm.rank))
    transport.all_reduce(buffer)
    assert buffer[0] == sum(range(comm.size))
    with pytest.raises(MissingPackageError, match='mnx\\[cuda12\\] or mnx\\[cuda13\\]'):
        transport.all_reduce(far(buffer))
    transport.close()


def test_the_probe_gives_a_version_or_a_reason() -> None:
    version, problem = nccl.probe()
    assert version >= nccl.OLDEST or problem


@pytest.mark.gpu
def test_on_gpus(comm: Communicator) -> None:
    """Every rank needs a GPU of its own, or NCCL_MULTI_RANK_GPU_ENABLE=1."""
    import cupy

    cupy.cuda.Device(comm.intra_rank % cupy.cuda.runtime.getDeviceCount()).use()
    n, rank = comm.size, comm.rank
    world = mpi.MpiTransport(pytest.importorskip('mpi4py.MPI').COMM_WORLD)
    transport = NcclTransport(HostStagedTransport(world))
    for dtype in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', 'c8', 'i2'):
        x = (cupy.arange(1000) % 5 + rank).astype(dtype)
        expected = sum((np.arange(1000) % 5 + r).astype(dtype) for r in range(n))
        y = x.copy()
        pending = transport.start_all_reduce(y)
        transport.all_reduce(x)
        pending.wait()
        np.testing.assert_array_equal(x.get(), expected)
        np.testing.assert_array_equal(y.get(), expected)
    received = [cupy.zeros(10 + rank + r) for r in range(n)]
    transport.all_to_all([cupy.full(10 + rank + r, 10.0 * rank + r) for r in range(n)], received)
    for r, buffer in enumerate(received):
        assert (buffer.get() == 10.0 * r + rank).all()
    if rank == 0 and n > 1:
        transport.send(cupy.arange(9.0), 1, 3)
    elif rank == 1:
        found = cupy.zeros(9)
        transport.recv(found, 0, 3)
        np.testing.assert_array_equal(found.get(), np.arange(9.0))
    transport.close()
