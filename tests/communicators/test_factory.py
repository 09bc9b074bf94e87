"""From a name to a communicator, on machines with and without GPUs."""

from __future__ import annotations

import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator, factory
from mnx.communicators.factory import build
from mnx.errors import MissingPackageError
from mnx.transports import devices, gpu_aware
from mnx.transports.devices import Devices
from mnx.transports.host_staged import HostStagedTransport
from mnx.transports.local import LocalChannels
from mnx.transports.mpi import MpiChannels, MpiTransport
from mnx.transports.nccl import NcclTransport

NO_GPU = Devices(problem='CuPy finds no GPU')


@pytest.fixture
def seen(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> list[Devices]:
    """What the ranks see: a list that a test may change, on all ranks alike."""
    ranks = [Devices((f'gpu {r}',), 23203) for r in range(comm.size)]
    monkeypatch.setattr(devices, 'survey', lambda control: ranks)
    monkeypatch.setenv('MNX_GPU_AWARE', '0')
    return ranks


@pytest.mark.parametrize('name', ['nccl', 'pure_nccl', 'non_cuda_aware'])
def test_what_is_missing_on_one_rank_all_ranks_say(
    name: str, comm: Communicator, seen: list[Devices]
) -> None:
    seen[-1] = NO_GPU
    with pytest.raises(MissingPackageError) as caught:
        build(name, MpiChannels())
    canonical = factory.ALIASES.get(name, name)
    assert str(caught.value).startswith(f'{canonical}: needs a GPU, CuPy and NCCL on every rank')
    assert f'on rank {comm.size - 1} of {comm.size} CuPy finds no GPU' in str(caught.value)
    assert 'Install mnx[cuda12] or mnx[cuda13]' in str(caught.value)


def test_by_its_public_name() -> None:
    if not devices.visible().problem:
        pytest.skip('there is a GPU, and NCCL')
    with pytest.raises(MissingPackageError, match=r'mnx\[cuda12\]'):
        mnx.create_communicator('pure_nccl')


@pytest.mark.usefixtures('seen')
@pytest.mark.parametrize(
    ('name', 'arrays'),
    [
        ('nccl', NcclTransport),
        ('pure_nccl', NcclTransport),
        ('non_cuda_aware', HostStagedTransport),
        ('flat', HostStagedTransport),
        ('dummy', HostStagedTransport),
    ],
)
def test_what_carries_arrays_on_gpus(name: str, arrays: type) -> None:
    with build(name, MpiChannels()) as made:
        assert made.name == factory.ALIASES.get(name, name)
        assert type(made._channels.arrays) is arrays
        assert type(made._channels.control) is MpiTransport
        part = made.split(0, made.rank)
        assert part is not None
        assert type(part._channels.arrays) is arrays


@pytest.mark.usefixtures('seen')
def test_an_mpi_that_reads_gpus_is_given_their_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MNX_GPU_AWARE', '1')
    for name, carrier in [('flat', MpiTransport), ('non_cuda_aware', HostStagedTransport)]:
        with build(name, MpiChannels()) as made:
            assert type(made._channels.arrays) is carrier


def test_without_a_gpu_nothing_is_asked(
    comm: Communicator, seen: list[Devices], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_aware, 'agreed', None)
    seen[:] = [NO_GPU] * comm.size
    with build('flat', MpiChannels()) as made:
        assert type(made._channels.arrays) is MpiTransport


@pytest.mark.needs_ranks(2)
@pytest.mark.usefixtures('seen')
def test_auto_takes_nccl_and_says_why(comm: Communicator) -> None:
    with build('auto', MpiChannels()) as made:
        assert made.describe().startswith(
            f"nccl ('auto': each of the {comm.size} ranks has a GPU, and there is NCCL 2.32): "
        )
        assert made.allreduce(np.ones(3)).tolist() == [comm.size] * 3


def test_alone_without_mpi(seen: list[Devices]) -> None:
    del seen[1:]
    assert build('nccl', LocalChannels()).name == 'local'
    seen[0] = NO_GPU
    with pytest.raises(MissingPackageError):
        build('nccl', LocalChannels())
