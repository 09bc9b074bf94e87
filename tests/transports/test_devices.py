"""What a rank sees, here and with CuPys of several kinds."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mnx.communicators import Communicator
from mnx.transports import devices, nccl
from mnx.transports.devices import visible
from mnx.transports.mpi import MpiTransport
from tests.transports.nccl_on_host import FarAway


def cupy_with(gpus: int | Exception) -> Any:
    def count() -> int:
        if isinstance(gpus, Exception):
            raise gpus
        return gpus

    runtime = SimpleNamespace(getDeviceCount=count, deviceGetPCIBusId=lambda i: f'0000:{i}')
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), ndarray=FarAway)


def test_there_are_gpus_or_a_reason() -> None:
    seen = visible()
    assert (seen.gpus and seen.nccl) or seen.problem


@pytest.mark.parametrize(
    ('gpus', 'problem'),
    [
        (0, 'CuPy finds no GPU'),
        (RuntimeError('driver too old'), 'CuPy finds no GPU (driver too old)'),
        (2, 'no NCCL'),
    ],
    ids=['none', 'driver', 'nccl'],
)
def test_what_is_missing(
    gpus: int | Exception, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'cupy', cupy_with(gpus))
    monkeypatch.setattr(nccl, 'probe', lambda: (0, 'no NCCL'))
    assert visible().problem == problem
    names = visible().gpus
    assert [name.split()[-1] for name in names] == (['0000:0', '0000:1'] if gpus == 2 else [])


def test_all_ranks_see_what_each_sees(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'cupy', cupy_with(comm.rank + 1))
    monkeypatch.setattr(nccl, 'probe', lambda: (23203, ''))
    transport = MpiTransport(comm.mpi_comm)
    seen = devices.survey(transport)
    transport.close()
    assert [len(d.gpus) for d in seen] == [rank + 1 for rank in range(comm.size)]
    assert {(d.nccl, d.problem) for d in seen} == {(23203, '')}
