"""Which ranks share a host: by name, and by whether they really share memory."""

from __future__ import annotations

from collections.abc import Sequence


def shared_hosts(names: Sequence[str], leaders: Sequence[int]) -> tuple[str, ...]:
    """Return host names in which ranks are equal only if they also share memory.

    Parameters
    ----------
    names : sequence of str
        Each rank's host. Containers may share one name and no memory.
    leaders : sequence of int
        For each rank the lowest one with which it shares memory.

    >>> shared_hosts(['a', 'a', 'b'], [0, 0, 2])
    ('a', 'a', 'b')
    >>> shared_hosts(['a', 'a', 'b'], [0, 1, 2])
    ('a 0', 'a 1', 'b')
    """
    groups: dict[str, set[int]] = {}
    for name, leader in zip(names, leaders, strict=True):
        groups.setdefault(name, set()).add(leader)
    return tuple(
        name if len(groups[name]) == 1 else f'{name} {leader}'
        for name, leader in zip(names, leaders, strict=True)
    )
