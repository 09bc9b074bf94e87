"""What each linear communication moves, and which one undoes it in backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import MismatchError
from mnx.functions import linear
from mnx.functions.node import Communication, Route
from tests.launching import alone

Arrays = tuple[np.ndarray, ...]


def x_of(rank: int, s: int = 0) -> np.ndarray:
    """Return the s-th array of a rank: no two are equal."""
    return np.array([[1.0 + rank, 10.0 * s], [2.0 ** (rank + s), rank - s]])


def row_of(rank: int, size: int) -> Arrays:
    return tuple(x_of(rank, s) for s in range(size))


# What rank r gives, and what it gets, of n ranks; the last rank is the root.
Row = Callable[[int, int], Arrays]


def one(r: int, n: int) -> Arrays:
    return (x_of(r),)


def total(r: int, n: int) -> Arrays:
    return (sum(x_of(s) for s in range(n)),)


def of_root(row: Row) -> Row:
    return lambda r, n: row(r, n) if r == n - 1 else ()


MOVES: dict[str, tuple[type[Communication], str, Row, Row]] = {
    'allreduce': (linear.AllReduce, 'sum', one, total),
    'allreduce-mean': (linear.AllReduce, 'mean', one, lambda r, n: (total(r, n)[0] / n,)),
    'alltoall': (
        linear.AllToAll, 'sum', row_of, lambda r, n: tuple(x_of(s, r) for s in range(n)),
    ),
    'allgather': (
        linear.AllGather, 'sum', one, lambda r, n: tuple(x_of(s) for s in range(n)),
    ),
    'reduce_scatter': (
        linear.ReduceScatter, 'sum', row_of, lambda r, n: (sum(x_of(s, r) for s in range(n)),),
    ),
    'bcast': (linear.Bcast, 'sum', of_root(one), lambda r, n: (x_of(n - 1),)),
    'bcast-mean': (linear.Bcast, 'mean', of_root(one), lambda r, n: (x_of(n - 1) / n,)),
    'reduce': (linear.Reduce, 'sum', one, of_root(total)),
    'reduce-mean': (
        linear.Reduce, 'mean', one, of_root(lambda r, n: (total(r, n)[0] / n,)),
    ),
    'gather': (
        linear.Gather, 'sum', one, of_root(lambda r, n: tuple(x_of(s) for s in range(n))),
    ),
    'scatter': (linear.Scatter, 'sum', of_root(row_of), lambda r, n: (x_of(n - 1, r),)),
    'sync_grad': (linear.SyncGrad, 'sum', one, one),
}  # fmt: skip


@pytest.mark.parametrize('name', MOVES)
def test_what_it_moves(comm: Communicator, name: str) -> None:
    kind, op, gives, gets = MOVES[name]
    xs = gives(comm.rank, comm.size)
    ys = kind(comm, Route(op, comm.size - 1)).communicate(xs)
    expected = gets(comm.rank, comm.size)
    assert len(ys) == len(expected)
    for y, z in zip(ys, expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-14)
    for x, given in zip(xs, gives(comm.rank, comm.size), strict=True):
        np.testing.assert_array_equal(x, given)


@alone
@pytest.mark.parametrize(
    ('name', 'adjoint'),
    [
        ('AllReduce', 'AllReduce'),
        ('AllToAll', 'AllToAll'),
        ('AllGather', 'ReduceScatter'),
        ('Bcast', 'Reduce'),
        ('Gather', 'Scatter'),
        ('Send', 'Recv'),
    ],
)
def test_which_one_is_the_adjoint(name: str, adjoint: str) -> None:
    """Of the adjoint, too: a gradient's gradient travels as the value did."""
    assert getattr(linear, name).adjoint is getattr(linear, adjoint)
    assert getattr(linear, adjoint).adjoint is getattr(linear, name)


@pytest.mark.parametrize(
    ('name', 'op'),
    [
        ('AllReduce', 'sum'),
        ('AllReduce', 'mean'),
        ('AllToAll', 'sum'),
        ('AllGather', 'sum'),
        ('Bcast', 'sum'),
        ('Bcast', 'mean'),
        ('Gather', 'sum'),
    ],
)
def test_the_matrix_of_an_adjoint_is_transposed(comm: Communicator, name: str, op: str) -> None:
    """<A x, y> = <x, A* y> for arrays that have nothing to do with each other."""
    kind, route = getattr(linear, name), Route(op, comm.size - 1)
    gives_row = name == 'AllToAll'
    gives_none = name == 'Bcast' and comm.rank != comm.size - 1
    xs = () if gives_none else row_of(comm.rank, comm.size if gives_row else 1)
    Ax = kind(comm, route).communicate(xs)
    ys = tuple(np.cos(3.0 * y + comm.rank + i) for i, y in enumerate(Ax))
    Ay = kind.adjoint(comm, route).communicate(ys)
    products = [sum(float((a * b).sum()) for a, b in zip(p, q, strict=True))
                for p, q in ((Ax, ys), (xs, Ay))]  # fmt: skip
    left, right = comm.allreduce(np.array(products))
    assert left == pytest.approx(right, rel=1e-13)


def pair(comm: Communicator, **of_adjoint: int | None) -> tuple[linear.Send, linear.Recv]:
    """Return a message from rank 0 or 1 to the other one, and one back."""
    route = Route(peer=1 - comm.rank, tag=5)
    send, recv = linear.Send(comm, route), linear.Recv(comm, route)
    send.adjoint_of, recv.adjoint_of = of_adjoint.get('send'), of_adjoint.get('recv')
    return send, recv


@pytest.mark.needs_ranks(2)
class TestMessages:
    @pytest.mark.parametrize('n', [1, 3])
    def test_one_array_or_several(self, comm: Communicator, n: int) -> None:
        if comm.rank > 1:
            return
        send, recv = pair(comm)
        assert send.communicate(row_of(comm.rank, n)) == ()
        ys = recv.communicate(())
        assert len(ys) == n
        for y, z in zip(ys, row_of(1 - comm.rank, n), strict=True):
            np.testing.assert_array_equal(y, z)

    def test_both_ends_number_it_alike(self, comm: Communicator) -> None:
        """So the ranks' first message in this direction need not be the first of the job."""
        if comm.rank > 1:
            return
        turns = []
        for _ in range(3):
            send, recv = pair(comm)
            if comm.rank == 0:
                send.communicate((x_of(0),))
            else:
                recv.communicate(())
            turns.append((send if comm.rank == 0 else recv).turn)
        assert turns == [turns[0], turns[0] + 1, turns[0] + 2]
        comm.send_obj(turns, 1 - comm.rank)
        assert comm.recv_obj(1 - comm.rank) == turns

    def test_a_gradient_brings_the_number_of_its_message(self, comm: Communicator) -> None:
        if comm.rank > 1:
            return
        send, recv = pair(comm, send=7, recv=7)
        send.communicate(row_of(comm.rank, 2))
        ys = recv.communicate(())
        np.testing.assert_array_equal(np.stack(ys), np.stack(row_of(1 - comm.rank, 2)))

    @pytest.mark.parametrize('sent', [6, None])
    def test_the_gradient_of_another_message_is_refused(
        self, comm: Communicator, sent: int | None
    ) -> None:
        """Also what was sent in forward, which brings no number."""
        if comm.rank > 1:
            return
        send, recv = pair(comm, send=sent, recv=7)
        send.communicate((np.array(7.0),) if sent is None else (x_of(0),))
        text = rf'gradient of message 7 to rank {1 - comm.rank} \(tag 5\), but got that of another'
        with pytest.raises(MismatchError, match=text):
            recv.communicate(())
