"""Every method of a transport, also for buffers that travel in pieces, against NumPy.

`LARGEST_COUNT` is made small, so that a dozen numbers already are too many for one message.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.transports import mpi
from mnx.transports.base import ANY_TAG, FRAME_BYTES, Transport
from mnx.transports.local import LocalTransport

COUNTS = [1, 7, 2**30]
SIZES = [0, 1, 6, 7, 8, 23]


@pytest.fixture(params=['mpi', 'local'])
def transport(request: pytest.FixtureRequest, comm: Communicator) -> Iterator[Transport]:
    if request.param == 'local':
        yield LocalTransport()
        return
    world = pytest.importorskip('mpi4py.MPI').COMM_WORLD
    made = mpi.MpiTransport(world)
    yield made
    made.close()


@pytest.fixture(params=COUNTS)
def largest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(mpi, 'LARGEST_COUNT', request.param)
    return request.param


def data(rank: int, size: int, dtype: str = 'f8') -> np.ndarray:
    return ((np.arange(size) * 5 + rank * 3 + 1) % 13).astype(dtype)


def counts_of(transport: Transport, size: int) -> list[int]:
    """Parts of unequal length, one of them empty where there are several ranks."""
    return [size + r if r != 1 else 0 for r in range(transport.size)]


def test_pieces_are_the_whole(largest: int) -> None:
    for size in SIZES:
        cut = list(mpi.pieces(data(0, size)))
        assert all(0 < piece.size <= largest for piece in cut)
        np.testing.assert_array_equal(np.concatenate([data(0, 0), *cut]), data(0, size))


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('dtype', ['u1', 'f4', 'c16'])
def test_send_around_the_ring(transport: Transport, size: int, dtype: str) -> None:
    following = (transport.rank + 1) % transport.size
    previous = (transport.rank - 1) % transport.size
    buffer = np.full(size, 99, dtype)
    for sender in range(transport.size):  # one after the other: a long send may wait
        if transport.rank == sender:
            transport.send(data(sender, size, dtype), following, 3)
        if transport.rank == (sender + 1) % transport.size:
            transport.recv(buffer, previous, 3)
    np.testing.assert_array_equal(buffer, data(previous, size, dtype))


@pytest.mark.parametrize('size', [0, 1, 100, FRAME_BYTES])
def test_frames(transport: Transport, size: int) -> None:
    following = (transport.rank + 1) % transport.size
    previous = (transport.rank - 1) % transport.size
    memory = bytearray(FRAME_BYTES)
    for sender in range(transport.size):
        if transport.rank == sender:
            transport.send_frame(data(sender, size, 'u1').tobytes(), following, 4)
        if transport.rank == (sender + 1) % transport.size:
            assert transport.recv_frame(memory, previous, ANY_TAG) == (previous, 4)
    assert memory[:size] == data(previous, size, 'u1').tobytes()


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('size', SIZES)
def test_broadcast(transport: Transport, size: int) -> None:
    for root in range(transport.size):
        buffer = data(transport.rank, size)
        transport.broadcast(buffer, root)
        np.testing.assert_array_equal(buffer, data(root, size))


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('op', ['sum', 'prod', 'max', 'min'])
@pytest.mark.parametrize('size', SIZES)
def test_reductions(transport: Transport, size: int, op: str) -> None:
    ufunc = {'sum': np.add, 'prod': np.multiply, 'max': np.maximum, 'min': np.minimum}[op]
    expected = ufunc.reduce([data(r, size) for r in range(transport.size)])
    buffer = data(transport.rank, size)
    transport.all_reduce(buffer, op)
    np.testing.assert_array_equal(buffer, expected)
    for root in range(transport.size):
        buffer = data(transport.rank, size)
        transport.reduce(buffer, root, op)
        at_root = transport.rank == root
        np.testing.assert_array_equal(buffer, expected if at_root else data(transport.rank, size))
        kept, into = data(transport.rank, size), np.zeros_like(buffer)
        transport.reduce(kept, root, op, into)
        np.testing.assert_array_equal(kept, data(transport.rank, size))
        np.testing.assert_array_equal(into, expected if at_root else np.zeros_like(buffer))


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('size', SIZES)
def test_started_all_reduce(transport: Transport, size: int) -> None:
    buffers = [data(transport.rank + k, size) for k in range(3)]
    pending = [transport.start_all_reduce(buffer) for buffer in buffers]
    while not pending[1].test():
        pass
    for p in pending:
        p.wait()
        assert p.test()
    for k, buffer in enumerate(buffers):
        expected = sum(data(r + k, size) for r in range(transport.size))
        np.testing.assert_array_equal(buffer, expected)


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('op', ['sum', 'max'])
@pytest.mark.parametrize('size', SIZES)
def test_reduce_scatter(transport: Transport, size: int, op: str) -> None:
    counts = counts_of(transport, size)
    stop = int(np.cumsum(counts)[transport.rank])
    mine = slice(stop - counts[transport.rank], stop)
    received = np.full(counts[transport.rank], 99.0)
    transport.reduce_scatter(data(transport.rank, sum(counts)), received, counts, op)
    ufunc = {'sum': np.add, 'max': np.maximum}[op]
    expected = ufunc.reduce([data(r, sum(counts)) for r in range(transport.size)])[mine]
    np.testing.assert_array_equal(received, expected)


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('size', SIZES)
def test_gather_and_scatter(transport: Transport, size: int) -> None:
    counts = counts_of(transport, size)
    rank = transport.rank
    for root in range(transport.size):
        received = [np.full(n, 99.0) for n in counts] if rank == root else None
        transport.gather(data(rank, counts[rank]), received, root)
        for r, buffer in enumerate(received or []):
            np.testing.assert_array_equal(buffer, data(r, counts[r]))
        sent = [data(10 + r, n) for r, n in enumerate(counts)] if rank == root else None
        mine = np.full(counts[rank], 99.0)
        transport.scatter(sent, mine, root)
        np.testing.assert_array_equal(mine, data(10 + rank, counts[rank]))


@pytest.mark.parametrize('straight_from', [0, 2**30])
@pytest.mark.parametrize('size', SIZES)
def test_gather_rows(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, size: int, straight_from: int
) -> None:
    """By MPI's own gather, and straight from each rank."""
    monkeypatch.setattr(mpi, 'STRAIGHT_FROM', straight_from)
    for root in range(transport.size):
        received = np.full(transport.size * size, 99.0) if transport.rank == root else None
        transport.gather_rows(data(transport.rank, size), received, root)
        if received is not None:
            expected = [data(r, size) for r in range(transport.size)]
            np.testing.assert_array_equal(received, np.concatenate(expected))


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('size', SIZES)
def test_all_gather(transport: Transport, size: int) -> None:
    counts = counts_of(transport, size)
    received = np.full(sum(counts), 99.0)
    transport.all_gather(data(transport.rank, counts[transport.rank]), received, counts)
    expected = np.concatenate([data(r, n) for r, n in enumerate(counts)])
    np.testing.assert_array_equal(received, expected)


@pytest.mark.usefixtures('largest')
@pytest.mark.parametrize('size', SIZES)
def test_all_to_all(transport: Transport, size: int) -> None:
    rank = transport.rank
    sent = [data(10 * rank + r, size + rank + r) for r in range(transport.size)]
    received = [np.full(size + rank + r, 99.0) for r in range(transport.size)]
    transport.all_to_all(sent, received)
    for r, buffer in enumerate(received):
        np.testing.assert_array_equal(buffer, data(10 * r + rank, size + rank + r))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.limit(600)
def test_more_elements_than_an_int_can_count(comm: Communicator) -> None:
    """On 2 ranks: takes 10 GiB and a minute or two."""
    if comm.size != 2:
        pytest.skip('runs on 2 ranks: more need more memory, and show no more')
    n = 2**31 + 5
    probes = [0, 2**30 - 1, 2**30, 2**31 - 1, 2**31, n - 1]

    def fresh(rank: int) -> np.ndarray:
        x = np.full(n, 1 + rank, np.int8)
        x[probes] = np.arange(len(probes)) + 10 * rank
        return x

    def is_of(x: np.ndarray, rank: int) -> bool:
        at_probes = np.array_equal(x[probes], np.arange(len(probes)) + 10 * rank)
        return len(x) == n and at_probes and x[2**31 + 1] == 1 + rank

    assert is_of(comm.bcast(fresh(1) if comm.rank == 1 else None, root=1), 1)
    if comm.rank == 0:
        comm.send(fresh(0), 1)
    else:
        assert is_of(comm.recv(0), 0)
    total = comm.allreduce(fresh(comm.rank))
    np.testing.assert_array_equal(total[probes], 2 * np.arange(len(probes)) + 10)
    assert total[2**31 + 1] == 3
    del total
    half = n // 2 + 1  # all parts together are too many
    parts = comm.allgather(fresh(comm.rank)[-half:])
    for rank, part in enumerate(parts):
        assert len(part) == half
        assert part[-1] == len(probes) - 1 + 10 * rank
