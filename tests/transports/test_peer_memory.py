"""The memory of other processes: who reaches it, and that nobody else's is touched."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mnx import kernels
from mnx.arrays import address_of
from mnx.communicators import Communicator
from mnx.transports import peer_memory
from mnx.transports.peer_memory import _deliver, peer_memory_of
from tests.peers import may_reach_others

reaching = pytest.mark.skipif(not may_reach_others(), reason='Linux forbids it here')

SECRET = np.array([17, -4], np.int64)


@reaching
def test_ranks_of_one_user_reach_one_another(comm: Communicator) -> None:
    assert peer_memory_of(comm._control) is not None


@pytest.mark.parametrize('case', ['unwanted', 'no kernel'])
def test_all_do_without_if_one_must(comm: Communicator, monkeypatch, case: str) -> None:
    with monkeypatch.context() as patch:
        if comm.rank == comm.size - 1:
            if case == 'unwanted':
                patch.setenv('MNX_PEER_MEMORY', '0')
            else:
                patch.setattr(kernels, 'reach', lambda *_: False)
        found = peer_memory_of(comm._control)
    assert found is None


@reaching
@pytest.mark.needs_ranks(2)
def test_all_do_without_if_one_is_not_reached(comm: Communicator, monkeypatch) -> None:
    """The first rank reaches itself alone, which is seen by the others, not by itself."""

    def only_here(pid: int, *args: object) -> None:
        if pid == os.getpid():
            _deliver(pid, *args)

    with monkeypatch.context() as patch:
        if comm.rank == 0:
            patch.setattr(peer_memory, '_deliver', only_here)
        found = peer_memory_of(comm._control)
    found_then = peer_memory_of(comm._control)
    assert found is None
    assert found_then is not None


def test_all_do_without_if_one_does_not_want_it(comm: Communicator) -> None:
    assert peer_memory_of(comm._control, wanted=comm.rank != comm.size - 1) is None


@reaching
def test_a_secret_is_delivered_where_it_is() -> None:
    box = np.stack([SECRET, np.zeros(2, np.int64), np.zeros(2, np.int64)])
    _deliver(os.getpid(), address_of(box), SECRET, 2)
    np.testing.assert_array_equal(box, [SECRET, [0, 0], SECRET])


@reaching
def test_nothing_is_written_where_another_secret_is() -> None:
    """Another process may have the same number in another container."""
    box = np.stack([SECRET + 1, np.zeros(2, np.int64)])
    _deliver(os.getpid(), address_of(box), SECRET, 1)
    np.testing.assert_array_equal(box, [SECRET + 1, [0, 0]])


@reaching
def test_nothing_is_written_into_another_process() -> None:
    box = np.stack([SECRET, np.zeros(2, np.int64)])
    with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE) as other:
        _deliver(other.pid, address_of(box), SECRET, 1)
        other.communicate(b'\n')
        assert other.returncode == 0
    np.testing.assert_array_equal(box, [SECRET, [0, 0]])


# --- the calls in C ------------------------------------------------------------------------------


@reaching
def test_bytes_of_a_process() -> None:
    there, here = np.arange(10), np.zeros(10, np.int64)
    assert kernels.reach(os.getpid(), address_of(there), here, False) == 0
    np.testing.assert_array_equal(here, there)
    assert kernels.reach(os.getpid(), address_of(there), here * 2, True) == 0
    np.testing.assert_array_equal(there, 2 * np.arange(10))


@reaching
def test_what_is_not_there() -> None:
    here = np.zeros(10)
    assert kernels.reach(os.getpid(), 64, here, False) == errno.EFAULT
    with subprocess.Popen([sys.executable, '-c', '']) as gone:
        pass
    assert kernels.reach(gone.pid, address_of(here), here, False) == errno.ESRCH


@reaching
def test_a_chunk_longer_than_the_buffers_is_refused() -> None:
    x = np.ones(100)
    places = np.full((2, 2, 1), address_of(x), np.int64)
    pieces, chunks = np.array([[0, 0, 0, 800]]), np.array([[0, 1]])
    buffers = np.zeros((3, 99))
    found = kernels.sum_share(
        np.array([os.getpid()] * 2), 0, places, pieces, chunks, True, buffers, 1.0
    )
    assert found == (errno.EMSGSIZE, 0)


@reaching
@pytest.mark.parametrize('number', [0, 2, 3, 4, 6])
def test_arrays_of_other_kinds_are_refused(number: int) -> None:
    x = np.ones(100)
    places = np.full((2, 2, 1), address_of(x), np.int64)
    given = [
        np.array([os.getpid()] * 2),
        0,
        places,
        np.array([[0, 0, 0, 800]]),
        np.array([[0, 1]]),
        True,
        np.zeros((3, 100)),
        1.0,
    ]
    assert kernels.sum_share(*given) == (0, 1)
    assert (x == 2).all()  # of this process twice, and both get it
    for wrong in (given[number].astype('i4'), given[number].reshape(-1, 1, 1, 1), [1]):
        with pytest.raises((TypeError, ValueError)):
            kernels.sum_share(*given[:number], wrong, *given[number + 1 :])


@pytest.mark.skipif(not kernels.built, reason='there is no kernel')
def test_addresses() -> None:
    arrays = [np.zeros(3), np.zeros((2, 2)), np.zeros(6)[1:]]
    found, dtype = np.zeros(3, np.int64), arrays[0].dtype
    assert kernels.addresses(arrays, dtype, found, True)
    assert found.tolist() == [address_of(x) for x in arrays]
    assert kernels.addresses([], dtype, found[:0], True)
    assert kernels.addresses(pickle.loads(pickle.dumps(arrays)), dtype, found, True)
    arrays[1].flags.writeable = False
    assert kernels.addresses(arrays, dtype, found, False)
    assert not kernels.addresses(arrays, dtype, found, True)
    odd = np.zeros(6)[::2], np.zeros(9, 'u1')[1:].view('f8'), [1.0], np.zeros(3, '>f8')
    for x in (*odd, np.zeros(3, 'f4')):
        assert not kernels.addresses([x], dtype, found[:1], False)
    assert not kernels.addresses(arrays, dtype, found[:2], False)
