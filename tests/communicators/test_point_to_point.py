"""What was sent arrives, whether it fits into a frame or not."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mnx.communicators import Communicator, point_to_point
from mnx.communicators.point_to_point import LEAD_BYTES
from mnx.transports.base import FRAME_BYTES

FITS = FRAME_BYTES - LEAD_BYTES
LENGTHS = [0, 1, FITS - 1, FITS, FITS + 1, FRAME_BYTES, 4 * FRAME_BYTES]


def around(comm: Communicator, data: object, tag: int = 0) -> object:
    """Send `data` to the next rank; return what came from the one before."""
    following, previous = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    if comm.rank % 2 == 0:
        comm.send(data, following, tag)
        return comm.recv(previous, tag)
    received = comm.recv(previous, tag)
    comm.send(data, following, tag)
    return received


def bytes_of(rank: int, length: int) -> np.ndarray:
    return np.random.default_rng(1000 * rank + length).integers(0, 256, length, np.uint8)


@pytest.mark.parametrize('length', LENGTHS)
def test_lengths_around_the_frame(comm: Communicator, length: int) -> None:
    for _ in range(3):  # the first one of a kind takes another way than the next
        received = around(comm, bytes_of(comm.rank, length))
        np.testing.assert_array_equal(received, bytes_of((comm.rank - 1) % comm.size, length))
        assert received.flags.writeable
        assert received.flags.owndata


@pytest.mark.parametrize('length', LENGTHS)
def test_tuples_of_lengths_around_the_frame(comm: Communicator, length: int) -> None:
    def message(rank: int) -> list[np.ndarray]:
        return [np.float16(rank), bytes_of(rank, length), np.full((2, 3), rank, 'c16')]

    received = around(comm, message(comm.rank))
    assert type(received) is tuple
    for x, y in zip(received, message((comm.rank - 1) % comm.size), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('count', [0, 1, 5, 300])
def test_tuples_of_many_arrays(comm: Communicator, count: int) -> None:
    """300 headers alone are longer than a frame."""
    received = around(comm, [np.array([comm.rank, k]) for k in range(count)])
    previous = (comm.rank - 1) % comm.size
    assert [x.tolist() for x in received] == [[previous, k] for k in range(count)]


def test_more_kinds_than_are_remembered(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_to_point, 'KEPT', 3)
    for shape in [(k,) for k in range(8)] * 2:
        received = around(comm, np.full(shape, comm.rank, 'f4'))
        np.testing.assert_array_equal(received, np.full(shape, (comm.rank - 1) % comm.size, 'f4'))


@pytest.mark.parametrize('dtype', ['>f8', '<f8', '>i2'])
def test_kinds_that_look_alike(comm: Communicator, dtype: str) -> None:
    """Of equal shape and size, so that only the byte order or the layout differs."""
    for x in (np.arange(6, dtype=dtype).reshape(2, 3), np.arange(6.0).reshape(3, 2).T):
        for _ in range(2):
            np.testing.assert_array_equal(
                around(comm, x + comm.rank), x + (comm.rank - 1) % comm.size
            )


def test_a_received_array_is_nobody_elses(comm: Communicator) -> None:
    first = around(comm, np.array([1.0, comm.rank]))
    second = around(comm, np.array([2.0, comm.rank]))
    assert (first[0], second[0]) == (1, 2)


@pytest.mark.needs_ranks(2)
def test_threads_receive_side_by_side(comm: Communicator) -> None:
    """Each has a frame of its own."""
    count, received = 4, {}

    def receive(tag: int) -> None:
        received[tag] = [comm.recv(0, tag).tolist() for _ in range(20)]

    if comm.rank == 0:
        for k in range(20):
            for dest in range(1, comm.size):
                for tag in range(count):
                    comm.send(np.array([tag, k]), dest, tag)
        return
    threads = [threading.Thread(target=receive, args=[tag]) for tag in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert received == {tag: [[tag, k] for k in range(20)] for tag in range(count)}
