"""The layers on top of MPI, without a GPU: arrays of a class of their own stand for those on one.

They never come to MPI. `host_staged` really copies them, by NumPy's memory; NCCL's place is taken
by `nccl_on_host`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mnx.arrays import Array
from mnx.communicators import Communicator
from mnx.transports import host_staged, mpi
from mnx.transports.base import Transport
from mnx.transports.host_staged import HostStagedTransport
from mnx.transports.nccl import NcclTransport
from tests.transports.nccl_on_host import HostLibrary, far, is_far, new_memory

SIZES = [0, 1, 5, 6, 7, 23]


class Guarded(mpi.MpiTransport):
    """MPI that refuses what it could not read."""

    def _exchange(self, sends, receives):
        sends, receives = list(sends), list(receives)
        assert not any(is_far(b) for _, b in [*sends, *receives])
        super()._exchange(sends, receives)

    def reduce_scatter(self, sent, received, counts, op='sum'):
        assert not is_far(sent)
        assert not is_far(received)
        super().reduce_scatter(sent, received, counts, op)

    def all_gather(self, sent, received, counts):
        assert not is_far(sent)
        assert not is_far(received)
        super().all_gather(sent, received, counts)


@pytest.fixture(params=[True, False], ids=['staged', 'straight'])
def staged(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=['host_staged', 'nccl'])
def transport(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Transport]:
    monkeypatch.setattr(host_staged, 'PIECE_BYTES', 48)  # six float64

    def pieces(buffer: Array) -> Iterator[Array]:
        assert not is_far(buffer)
        yield from _pieces(buffer)

    _pieces = mpi.pieces
    monkeypatch.setattr(mpi, 'pieces', pieces)
    MPI = pytest.importorskip('mpi4py.MPI')
    made: Transport = HostStagedTransport(Guarded(MPI.COMM_WORLD), is_far, new_memory)
    if request.param == 'nccl':
        library = HostLibrary(MPI)
        made = NcclTransport(made, lambda: library, is_far)
    yield made
    made.close()
    made.close()


def data(rank: int, size: int, staged: bool) -> Array:
    x = (np.arange(size) * 5 + rank * 3 + 1) % 13 + 0.5
    return far(x) if staged else x


def empty(size: int, staged: bool) -> Array:
    return data(0, size, staged) * 0 - 1


def equal(x: Array, expected: Array) -> bool:
    return np.array_equal(np.asarray(x), np.asarray(expected))


@pytest.mark.parametrize('size', SIZES)
def test_round_the_ring(transport: Transport, size: int, staged: bool) -> None:
    rank, n = transport.rank, transport.size
    buffer = empty(size, staged)
    for sender in range(n):
        if rank == sender:
            transport.send(data(sender, size, staged), (sender + 1) % n, 3)
        if rank == (sender + 1) % n:
            transport.recv(buffer, sender, 3)
    assert equal(buffer, data((rank - 1) % n, size, staged))


@pytest.mark.parametrize('size', SIZES)
def test_broadcast_and_reductions(transport: Transport, size: int, staged: bool) -> None:
    rank, n = transport.rank, transport.size
    for root in range(n):
        buffer = data(rank, size, staged)
        transport.broadcast(buffer, root)
        assert equal(buffer, data(root, size, staged))
        buffer = data(rank, size, staged)
        transport.reduce(buffer, root, 'max')
        largest = np.max([data(r, size, False) for r in range(n)], axis=0)
        assert equal(buffer, largest if rank == root else data(rank, size, False))
        kept, into = data(rank, size, staged), data(-1, size, staged)
        transport.reduce(kept, root, 'max', into if rank == root else None)
        assert equal(kept, data(rank, size, False))
        assert equal(into, largest if rank == root else data(-1, size, False))
    buffer = data(rank, size, staged)
    transport.all_reduce(buffer)
    assert equal(buffer, sum(data(r, size, False) for r in range(n)))


def test_started_all_reduces_do_not_share_memory(transport: Transport, staged: bool) -> None:
    buffers = [data(transport.rank + k, 20, staged) for k in range(3)]
    pending = [transport.start_all_reduce(buffer) for buffer in buffers]
    while not pending[1].test():
        pass
    for p in pending:
        p.wait()
        assert p.test()
    for k, buffer in enumerate(buffers):
        assert equal(buffer, sum(data(r + k, 20, False) for r in range(transport.size)))


@pytest.mark.parametrize('size', SIZES)
def test_one_part_for_each_rank(transport: Transport, size: int, staged: bool) -> None:
    rank, n = transport.rank, transport.size
    counts = [size + r if r != 1 else 0 for r in range(n)]
    stops = np.cumsum(counts)

    received = empty(counts[rank], staged)
    transport.reduce_scatter(data(rank, sum(counts), staged), received, counts)
    total = sum(data(r, sum(counts), False) for r in range(n))
    assert equal(received, total[stops[rank] - counts[rank] : stops[rank]])

    everything = empty(sum(counts), staged)
    transport.all_gather(data(rank, counts[rank], staged), everything, counts)
    assert equal(everything, np.concatenate([data(r, k, False) for r, k in enumerate(counts)]))

    for root in range(n):
        parts = [empty(k, staged) for k in counts] if rank == root else None
        transport.gather(data(rank, counts[rank], staged), parts, root)
        for r, part in enumerate(parts or []):
            assert equal(part, data(r, counts[r], False))
        sent = [data(10 + r, k, staged) for r, k in enumerate(counts)] if rank == root else None
        mine = empty(counts[rank], staged)
        transport.scatter(sent, mine, root)
        assert equal(mine, data(10 + rank, counts[rank], False))

    rows = [data(10 * rank + r, size + rank + r, staged) for r in range(n)]
    columns = [empty(size + rank + r, staged) for r in range(n)]
    transport.all_to_all(rows, columns)
    for r, column in enumerate(columns):
        assert equal(column, data(10 * r + rank, size + rank + r, False))


def test_parts_are_staged_too(transport: Transport, comm: Communicator) -> None:
    half = transport.split(comm.rank % 2, -comm.rank)
    members = [r for r in range(comm.size) if r % 2 == comm.rank % 2]
    assert (half.rank, half.size) == (members[::-1].index(comm.rank), len(members))
    buffer = data(comm.rank, 9, True)
    half.all_reduce(buffer)
    assert equal(buffer, sum(data(r, 9, False) for r in members))
    half.close()
