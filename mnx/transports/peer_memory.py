"""The memory of the other processes of a node, read and written where it is.

The kernel copies straight from one process's arrays into another's: once, without a message, and
without memory that both share. It does so for processes that may debug one another: those of one
user, where neither a container nor ``/proc/sys/kernel/yama/ptrace_scope`` forbids it. So all ranks
try it first. ``MNX_PEER_MEMORY=0`` does without.

Whoever reads or writes must know that the memory is there and in nobody else's use: the ranks
agree on that beforehand, and part only when all are done.

References: process_vm_readv(2), "cross-memory attach", Linux 3.2.
"""

from __future__ import annotations

import os
import secrets
from typing import cast

import numpy as np

from mnx import kernels
from mnx.arrays import Array, address_of
from mnx.errors import TransportError
from mnx.transports.base import Transport

MOST_PIECES = 1024  # of a chunk: IOV_MAX of Linux
_SECRET_WORDS = 2


class PeerMemory:
    """The memory of the ranks of one node.

    Parameters
    ----------
    rank : int
        This one.
    pids : list of int
        The process of each rank.
    """

    def __init__(self, rank: int, pids: list[int]) -> None:
        self._rank, self._pids = rank, np.array(pids, np.int64)

    def sum_share(
        self,
        places: Array,
        pieces: Array,
        chunks: Array,
        buffers: Array,
        divisor: float,
        *,
        for_all: bool,
    ) -> None:
        """Sum a share of the ranks' arrays, in rank order, and divide it.

        Parameters
        ----------
        places : array of int64, shape (ranks, 2, arrays)
            The addresses of each rank's arrays, and of those into which it wants the sums; all 0 if
            it wants none.
        pieces : array of int64, shape (pieces, 4)
            The number of an array, where a piece begins in it and where in the array for its
            sum, and its length, all in bytes.
        chunks : array of int64, shape (chunks, 2)
            The first piece of each chunk and their number, at most `MOST_PIECES`.
        buffers : array of float32 or float64, shape (3, room)
            With room for each chunk; of the arrays' dtype.
        divisor : float
        for_all : bool
            Put the sums into the arrays of all ranks that want them, not of this rank alone.

        Raises
        ------
        TransportError
            The memory of a rank cannot be reached.
        """
        found = kernels.sum_share(
            self._pids, self._rank, places, pieces, chunks, for_all, buffers, divisor
        )
        error, rank = cast('tuple[int, int]', found)  # without a kernel nobody makes a PeerMemory
        if error:
            raise TransportError(
                f'the memory of rank {rank}, process {self._pids[rank]}, could not be reached: '
                f'{os.strerror(error)}. If it still runs, MNX_PEER_MEMORY=0 takes other ways.'
            )


_lent: dict[object, object] = {}


def lend(memory: object) -> object:
    """Keep memory alive that others read or write, until `take_back` gets what this returns.

    A signal may end the call before the others are done. They may still write there, so then it
    is never to be used again.
    """
    loan = object()
    _lent[loan] = memory
    return loan


def take_back(loan: object) -> None:
    """No longer keep it: all are done."""
    del _lent[loan]


def peer_memory_of(ranks: Transport, *, wanted: bool = True) -> PeerMemory | None:
    """Return the memory of these ranks, if each can reach all others', and wants to. Collective.

    Each has a number that nobody can guess. Who reads it there, so that this is no other process
    with the same number in another container, writes it beside.
    """
    wanted = wanted and os.environ.get('MNX_PEER_MEMORY', '1') != '0' and _kernel_works()
    secret = np.frombuffer(secrets.token_bytes(8 * _SECRET_WORDS), np.int64)
    box = np.zeros((1 + ranks.size, _SECRET_WORDS), np.int64)
    box[0] = secret
    loan = lend(box)
    card = np.array([wanted, os.getpid(), address_of(box), *secret], np.int64)
    cards = np.empty((ranks.size, card.size), np.int64)
    ranks.all_gather(card, cards.reshape(-1), [card.size] * ranks.size)
    if cards[:, 0].all():
        for _, pid, address, *expected in cards.tolist():
            _deliver(pid, address, np.array(expected, np.int64), 1 + ranks.rank)
    ranks.barrier()
    reached = np.array([(box == secret).all()], np.int64)
    all_reached = np.empty(ranks.size, np.int64)
    ranks.all_gather(reached, all_reached, [1] * ranks.size)
    take_back(loan)
    return PeerMemory(ranks.rank, cards[:, 1].tolist()) if all_reached.all() else None


def _deliver(pid: int, address: int, secret: Array, place: int) -> None:
    """Copy what stands first in a process's box to another place there, if it is the secret."""
    seen = np.zeros_like(secret)
    failed = kernels.reach(pid, address, seen, False)
    if not failed and (seen == secret).all():
        kernels.reach(pid, address + place * seen.nbytes, seen, True)  # or else it sees nothing


def _kernel_works() -> bool:
    """Tell whether there is a kernel, and a Linux that lets it read this process itself."""
    given, seen = np.ones(1, np.int64), np.zeros(1, np.int64)
    kernels.reach(os.getpid(), address_of(given), seen, False)
    return bool(seen[0])
