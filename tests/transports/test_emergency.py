"""Which way out a process has; that they work is tested in tests/health/test_except_hook.py."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from mnx.transports import emergency

HYDRA = {'PMI_SIZE': '4', 'PMI_RANK': '2'}


@pytest.fixture
def pmi() -> Iterator[socket.socket]:
    """A socket as a launcher leaves it: to be inherited."""
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    yield theirs
    ours.close()
    theirs.close()


def test_hydras_rank_has_its_socket(pmi: socket.socket) -> None:
    found = emergency.bare_launcher({**HYDRA, 'PMI_FD': str(pmi.fileno())})
    assert found is not None
    assert (found.rank, found.size) == (2, 4)
    assert not found.carries_notices
    assert found.poll() == []


def test_who_has_none(pmi: socket.socket) -> None:
    fd = str(pmi.fileno())
    others = [
        {},
        HYDRA,  # a program that a rank has started
        {**HYDRA, 'PMI_FD': 'x'},
        {**HYDRA, 'PMI_FD': fd, 'PMI_SIZE': '1', 'PMI_RANK': '0'},  # nobody to end
        {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2', 'PMI_FD': fd},
        {'PMI_FD': fd},
    ]
    assert [emergency.bare_launcher(environ) for environ in others] == [None] * len(others)


def test_another_file_of_that_number_is_not_written_to(pmi: socket.socket) -> None:
    environ = {**HYDRA, 'PMI_FD': str(pmi.fileno())}
    pmi.set_inheritable(False)  # as all that Python itself opens
    assert emergency.bare_launcher(environ) is None
    read, write = os.pipe()
    os.set_inheritable(write, True)
    assert emergency.bare_launcher({**HYDRA, 'PMI_FD': str(write)}) is None
    os.close(read)
    os.close(write)
    assert emergency.bare_launcher({**HYDRA, 'PMI_FD': str(write)}) is None


def test_a_channel_belongs_to_the_process_that_registered_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emergency, '_registered', None)
    monkeypatch.setattr(emergency, '_owner', 0)
    assert emergency.current() is None
    channel = emergency.LauncherOnly(emergency.Launch('MPICH (Hydra)', 4, 2), -1)
    emergency.register(channel)
    assert emergency.current() is channel
    monkeypatch.setattr(emergency, '_owner', os.getpid() + 1)  # as in a forked worker
    assert emergency.current() is None
