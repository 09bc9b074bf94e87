"""More elements than an int can count, in every method that carries arrays. On 2 ranks.

Each takes up to 8 GiB and a minute or two.
"""

from __future__ import annotations

import numpy as np
import pytest

from mnx.communicators import Communicator

N = 2**31 + 5
PROBES = [0, 2**30 - 1, 2**30, 2**31 - 1, 2**31, N - 1]  # the borders of pieces, and the ends

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.limit(600)]


@pytest.fixture(autouse=True)
def only_on_two_ranks(comm: Communicator) -> None:
    if comm.size != 2:
        pytest.skip('runs on 2 ranks: more need more memory, and show no more')


def huge(rank: int, dtype: str = 'uint8') -> np.ndarray:
    x = np.full(N, rank if dtype == 'bool' else 1 + rank, dtype)
    x[PROBES] = marks(rank, dtype)
    return x


def marks(rank: int, dtype: str = 'uint8') -> np.ndarray:
    return ((np.arange(len(PROBES)) + 10 * rank) % (3 if dtype == 'bool' else 100)).astype(dtype)


def is_huge(x: np.ndarray, rank: int) -> bool:
    at_probes = np.array_equal(x[PROBES], marks(rank))
    between = {int(x[i]) for i in (1, 2**30 + 1, 2**31 + 1, N - 2)}
    return x.shape == (N,) and at_probes and between == {1 + rank}


def small(rank: int) -> np.ndarray:
    return np.arange(3, dtype='uint8') + rank


def test_bcast(comm: Communicator) -> None:
    assert is_huge(comm.bcast(huge(1) if comm.rank == 1 else None, root=1), 1)


def test_send_and_recv(comm: Communicator) -> None:
    if comm.rank == 0:
        comm.send(huge(0), 1)
    else:
        assert is_huge(comm.recv(0), 0)


@pytest.mark.parametrize('dtype', ['uint8', 'bool'])
def test_reduce(comm: Communicator, dtype: str) -> None:
    total = comm.reduce(huge(comm.rank, dtype), 'max', root=1)
    assert (total is None) == (comm.rank == 0)
    if total is not None:
        expected = np.maximum(marks(0, dtype), marks(1, dtype))
        np.testing.assert_array_equal(total[PROBES], expected)
        assert total.shape == (N,)
        assert total[1] == total[2**30 + 1] == total[2**31 + 1] == huge_between(1, dtype)


def huge_between(rank: int, dtype: str) -> int:
    return rank if dtype == 'bool' else 1 + rank


def test_reduce_scatter(comm: Communicator) -> None:
    """The rows together are too many."""
    x = huge(comm.rank)[: N - 1].reshape(2, -1)
    mine = comm.reduce_scatter(x)
    half = N // 2
    probes = [i for i in PROBES[:-1] if i // half == comm.rank]
    expected = (marks(0) + marks(1))[: len(PROBES) - 1]
    expected = expected[[i // half == comm.rank for i in PROBES[:-1]]]
    np.testing.assert_array_equal(mine[[i % half for i in probes]], expected)
    assert mine.shape == (half,)
    assert mine[half - 10] == 3


def test_gather(comm: Communicator) -> None:
    found = comm.gather(huge(1) if comm.rank == 1 else small(0), root=0)
    assert (found is None) == (comm.rank == 1)
    if found is not None:
        assert is_huge(found[1], 1)
        np.testing.assert_array_equal(found[0], small(0))


def test_allgather(comm: Communicator) -> None:
    found = comm.allgather(huge(1) if comm.rank == 1 else small(0))
    assert is_huge(found[1], 1)
    np.testing.assert_array_equal(found[0], small(0))


def test_scatter(comm: Communicator) -> None:
    mine = comm.scatter([huge(0), small(1)] if comm.rank == 1 else None, root=1)
    if comm.rank == 0:
        assert is_huge(mine, 0)
    else:
        np.testing.assert_array_equal(mine, small(1))


def test_alltoall(comm: Communicator) -> None:
    rows = [small(0), huge(1)] if comm.rank == 0 else [small(2), small(3)]
    found = comm.alltoall(rows)
    if comm.rank == 0:
        np.testing.assert_array_equal(found, [small(0), small(2)])
    else:
        assert is_huge(found[0], 1)
        np.testing.assert_array_equal(found[1], small(3))
