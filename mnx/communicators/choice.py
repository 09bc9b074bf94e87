"""What 'auto' stands for: a pure function of where the ranks are, and of their GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnx.topology import Topology
from mnx.transports.devices import Devices


@dataclass(frozen=True)
class Choice:
    """The name of a communicator, and why it was chosen."""

    name: str
    reason: str


def choose(topology: Topology, devices: Sequence[Devices] = ()) -> Choice:
    """Return the fastest communicator for ranks on these nodes, with these GPUs if there are any.

    >>> choose(Topology.of_hosts(['a', 'a', 'b', 'b'])).name
    'two_dimensional'
    """
    size = sum(len(ranks) for ranks in topology.nodes)
    if size == 1:
        return Choice('naive', 'there is one rank')
    if devices and one_gpu_each(topology, devices):
        version = devices[0].nccl
        number = f'{version // 10000}.{version // 100 % 100}'
        return Choice('nccl', f'each of the {size} ranks has a GPU, and there is NCCL {number}')
    if topology.inter_size == 1:
        return Choice('shared_memory', f'all {size} ranks are on one node')
    if all(len(ranks) == 1 for ranks in topology.nodes):
        return Choice('flat', f'the {size} ranks are on as many nodes')
    return Choice('two_dimensional', f'{size} ranks are on {topology.inter_size} nodes')


def one_gpu_each(topology: Topology, devices: Sequence[Devices]) -> bool:
    """Tell whether there is NCCL, and each node has a GPU for each rank, whoever sees which."""
    if any(d.problem for d in devices):
        return False
    seen = [{gpu for rank in ranks for gpu in devices[rank].gpus} for ranks in topology.nodes]
    enough = all(len(gpus) >= len(ranks) for gpus, ranks in zip(seen, topology.nodes, strict=True))
    apart = len(set().union(*seen)) == sum(map(len, seen))  # not so on simulated nodes
    return enough and apart and all(d.gpus for d in devices)
