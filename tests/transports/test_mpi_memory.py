"""The board: what every rank brings, all know the largest of, turn after turn."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from mnx import kernels
from mnx.communicators import Communicator
from mnx.errors import MismatchError
from mnx.transports import mpi, mpi_memory
from mnx.transports.mpi_memory import Board, board_of

needs_kernel = pytest.mark.skipif(
    not kernels.built, reason='mnx was installed without a C compiler, or runs with MNX_KERNELS=0'
)


@pytest.fixture
def board(comm: Communicator) -> Board:
    found = board_of(comm.mpi_comm)
    assert found is not None
    return found


def words(rank: int, turn: int, count: int = Board.ROOM) -> np.ndarray:
    """Numbers of either sign, another rank the largest in each place and turn."""
    return (np.arange(count) * 7 + rank * 5 + turn * 3) % 11 - 5 + (np.arange(count) % 3) * 2**60


def meet(
    place: Board | mpi.MpiTransport,
    comm: Communicator | mpi.MpiTransport,
    turn: int,
    count: int = Board.ROOM,
) -> None:
    """Bring this rank's words of a turn; look whether what comes back is the largest of all."""
    found = words(comm.rank, turn, count)
    place.find_largest(found)
    expected = np.max([words(r, turn, count) for r in range(comm.size)], axis=0)
    np.testing.assert_array_equal(found, expected)


@needs_kernel
@pytest.mark.parametrize('count', [1, 5, 37, Board.ROOM])
def test_the_largest_of_all(board: Board, comm: Communicator, count: int) -> None:
    for turn in range(200):
        meet(board, comm, turn, count)


@needs_kernel
@pytest.mark.parametrize('looks', [1, 200, -20])
def test_late_ranks_are_waited_for(board: Board, comm: Communicator, looks: int) -> None:
    board._patience.looks_in_c = looks
    for turn in range(2 * comm.size):
        if turn % comm.size == comm.rank:
            time.sleep(0.01)
        meet(board, comm, turn)


@needs_kernel
@pytest.mark.needs_ranks(2)
def test_nobody_leaves_before_all_have_come(board: Board, comm: Communicator) -> None:
    if comm.rank == 1:
        time.sleep(0.2)
    begin = time.monotonic()
    board.find_largest(np.zeros(1, np.int64))
    waited = time.monotonic() - begin
    assert waited > 0.1 or comm.rank == 1


@needs_kernel
@pytest.mark.needs_ranks(2)
def test_messages_move_meanwhile(board: Board, comm: Communicator) -> None:
    large = np.arange(10**6)  # too much for MPI to take it before somebody wants it
    if comm.rank == 0:
        requests = [comm.mpi_comm.Isend(large, dest=rank) for rank in range(1, comm.size)]
        board.find_largest(np.zeros(3, np.int64))
        MPI.Request.Waitall(requests)
    else:
        found = np.empty_like(large)
        comm.mpi_comm.Recv(found, source=0)
        assert (found == large).all()
        board.find_largest(np.zeros(3, np.int64))


class InterruptedWaitError(Exception):
    """What a signal handler raises."""


def _interrupt(*_: object) -> None:
    raise InterruptedWaitError


@needs_kernel
@pytest.mark.needs_ranks(2)
def test_a_rank_that_stops_waiting_keeps_its_turns(
    board: Board, comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has brought its words already, so the others go on; and its next ones do not hurt."""

    if comm.rank == 0:
        monkeypatch.setattr(board._patience, 'wait_until', _interrupt)
        with pytest.raises(InterruptedWaitError):
            board.find_largest(words(0, 0))
        monkeypatch.undo()
    else:
        comm.mpi_comm.Barrier()
        meet(board, comm, 0)
    if comm.rank == 0:
        comm.mpi_comm.Barrier()
    for turn in range(1, 5):
        meet(board, comm, turn)


@needs_kernel
@pytest.mark.needs_ranks(2)
@pytest.mark.limit(30)
def test_an_error_before_the_words_are_written(
    board: Board, comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaves the turn to the next words."""
    if comm.rank == 0:
        monkeypatch.setattr(kernels, 'largest', _interrupt)
        with pytest.raises(InterruptedWaitError):
            board.find_largest(words(5, 5))
        monkeypatch.undo()
    for turn in range(4):
        meet(board, comm, turn)


def test_who_waits_long_lets_others_run(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First other ranks, then this rank's other threads: looking takes Python's lock each time."""
    done: list[object] = []
    patience = mpi_memory._Patience(comm.mpi_comm)
    with monkeypatch.context() as patch:  # of this module's names: the watchdog sleeps, too
        patch.setattr(mpi_memory, 'os', SimpleNamespace(sched_yield=lambda: done.append('yield')))
        patch.setattr(mpi_memory, 'time', SimpleNamespace(sleep=done.append))
        patience.wait_until(lambda: len(done) == 2 * mpi_memory._MANY_LOOKS)
    first_pause = done.index(mpi_memory._PAUSE_S)
    assert mpi_memory._MANY_LOOKS - mpi_memory._LOOKS <= first_pause <= mpi_memory._MANY_LOOKS
    assert set(done[:first_pause]) == {'yield'}
    assert set(done[first_pause:]) == {mpi_memory._PAUSE_S}


@needs_kernel
@pytest.mark.needs_ranks(2)
def test_signals_are_heard_while_a_rank_waits(board: Board, comm: Communicator) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        comm.mpi_comm.Barrier()
        if comm.rank == 0:
            os.kill(comm.mpi_comm.recv(source=1), signal.SIGUSR1)
            time.sleep(0.1)
        elif comm.rank == 1:
            comm.mpi_comm.send(os.getpid(), dest=0)
        board.find_largest(np.zeros(1, np.int64))
        assert heard == [signal.SIGUSR1] * (comm.rank == 1)
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- as part of a transport --------------------------------------------------------------------


@pytest.fixture
def transport(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> Iterator[mpi.MpiTransport]:
    monkeypatch.setattr(mpi, 'BOARD_AFTER', 3)
    made = mpi.MpiTransport(comm.mpi_comm)
    yield made
    made.close()
    made.close()  # a second time does nothing


def test_meetings_move_to_the_board(transport: mpi.MpiTransport) -> None:
    """To the same result."""
    for turn in range(10):
        meet(transport, transport, turn, 37)
        has_board = turn >= 2 and transport.size > 1 and kernels.built
        assert (transport._board is not None) == has_board


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(30)
def test_a_signal_does_not_make_ranks_miscount(transport: mpi.MpiTransport) -> None:
    """A rank whose handler raises when its first meeting ends makes the board with the others."""
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        if transport.rank == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(InterruptedWaitError):
                transport.find_largest(words(0, 0))
        else:
            time.sleep(0.3)
            transport.find_largest(words(transport.rank, 0))
    finally:
        signal.signal(signal.SIGALRM, before)
    for turn in range(1, 10):
        meet(transport, transport, turn)


def test_more_words_than_a_row_holds_go_by_messages(transport: mpi.MpiTransport) -> None:
    for turn in range(10):
        count = Board.ROOM + 1 if turn % 2 else 5
        meet(transport, transport, turn, count)


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('lacks', ['kernel', 'memory'])
@pytest.mark.parametrize('where', ['first', 'last'])
def test_without_it_on_one_rank_all_go_by_messages(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, lacks: str, where: str
) -> None:
    if comm.rank == (0 if where == 'first' else comm.size - 1):
        if lacks == 'kernel':
            monkeypatch.setattr(mpi_memory, '_kernel_works', lambda: False)
        else:
            monkeypatch.setattr(os, 'posix_fallocate', _no_memory)
            monkeypatch.setattr(mmap, 'mmap', _no_memory)
    assert board_of(comm.mpi_comm) is None


def _no_memory(*_: object, **__: object) -> None:
    raise OSError(28, 'No space left on device')


def test_no_file_is_left(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = comm.bcast_obj(tmp_path)
    monkeypatch.setattr(mpi_memory, '_FILES', str(folder))
    assert (board_of(comm.mpi_comm) is not None) == kernels.built
    comm.barrier()
    assert not list(folder.iterdir())


@needs_kernel
@pytest.mark.limit(30)
def test_a_rank_alone_may_free_it(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the end of a program does, where ranks do not come to it together."""
    monkeypatch.setattr(mpi, 'BOARD_AFTER', 1)
    transport = mpi.MpiTransport(comm.mpi_comm)
    for turn in range(3):
        transport.find_largest(words(comm.rank, turn))
    if comm.rank == 0:
        transport.close()
    comm.mpi_comm.Barrier()  # the others have yet to close theirs
    transport.close()


@pytest.mark.needs_ranks(2)
@pytest.mark.limit(60)
def test_who_disagrees_is_told_by_the_board(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpi, 'BOARD_AFTER', 1)
    own = comm.group(range(comm.size))
    own.barrier()
    for _ in range(3):
        with pytest.raises(MismatchError, match='float32'):
            own.allreduce(np.ones(3, 'f4' if own.rank == 1 else 'f8'))
        assert own.allreduce(np.full(2, own.rank + 1.0)).tolist() == [sum(range(own.size + 1))] * 2
    own.finalize()


@needs_kernel
def test_the_kernel_knows_its_limits() -> None:
    rows, own = np.zeros((2, kernels.ROW), np.int64), np.zeros(3, np.int64)
    too_many = np.zeros(Board.ROOM + 1, np.int64)
    assert kernels.largest(rows[:1].copy(), 0, 1, own, 1)
    for wrong in [
        (rows, 2, 1, own),
        (rows, -1, 1, own),
        (rows, 0, 1, too_many),
        (rows[:, 1:].copy(), 0, 1, own),
    ]:
        with pytest.raises(ValueError, match='longer rows'):
            kernels.largest(*wrong, 1)
    for odd in [(rows, 'a', 1, own), (rows, 0, 1, own.astype('f8')), (rows.T, 0, 1, own)]:
        with pytest.raises(TypeError):
            kernels.largest(*odd, 1)
    assert not rows.any()
    assert not kernels.largest(rows, 0, 1, own + 5, 10)  # the other has yet to come
    assert rows[0, 0] == 1
    rows[1, 0], rows[1, 8 + Board.ROOM] = 1, 9
    assert kernels.largest(rows, 0, 1, own, 1)
    assert own.tolist() == [9, 0, 0]
    assert not kernels.largest(rows, 0, 3, own, 1)  # the other is at turn 1 still
    assert rows[0, 0] == 1
