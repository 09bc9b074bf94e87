"""What 'auto' stands for."""

from __future__ import annotations

import pytest

from mnx.communicators.choice import choose
from mnx.topology import Topology
from mnx.transports.devices import Devices

NO_GPU = Devices(problem='CuPy finds no GPU')


def gpus(*names: str) -> Devices:
    return Devices(names, 23203)


@pytest.mark.parametrize(
    ('hosts', 'name'),
    [('a', 'naive'), ('aa', 'shared_memory'), ('ab', 'flat'), ('aab', 'two_dimensional')],
)
def test_without_gpus(hosts: str, name: str) -> None:
    topology = Topology.of_hosts(list(hosts))
    assert choose(topology).name == name
    assert choose(topology, [NO_GPU] * len(hosts)).name == name


@pytest.mark.parametrize(
    ('hosts', 'devices', 'name'),
    [
        ('aa', [gpus('0', '1'), gpus('0', '1')], 'nccl'),  # both ranks see both
        ('aa', [gpus('0'), gpus('1')], 'nccl'),  # the launcher shows each rank its own
        ('aa', [gpus('0'), gpus('0')], 'shared_memory'),  # one for two
        ('ab', [gpus('a0'), gpus('b0')], 'nccl'),
        ('ab', [gpus('a0'), gpus('a0')], 'flat'),  # nodes that are not really two
        ('aa', [gpus('0', '1'), NO_GPU], 'shared_memory'),
        ('aab', [gpus('0', '1'), gpus('0', '1'), NO_GPU], 'two_dimensional'),
        ('aa', [gpus('0', '1'), Devices(('0', '1'), 0, 'no NCCL')], 'shared_memory'),
        ('a', [gpus('0')], 'naive'),
    ],
)
def test_nccl_where_each_rank_has_a_gpu(hosts: str, devices: list[Devices], name: str) -> None:
    assert choose(Topology.of_hosts(list(hosts)), devices).name == name


def test_the_reason() -> None:
    choice = choose(Topology.of_hosts(['a', 'a']), [gpus('0'), gpus('1')])
    assert choice.reason == 'each of the 2 ranks has a GPU, and there is NCCL 2.32'
