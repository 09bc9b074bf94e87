"""Copies of a model that differ although all were updated by the same gradients.

The exchange gives all ranks the same mean; what each makes of it is its own affair: an update rule
with another rate on one rank, a hook that draws random numbers, weights set on one rank only. So
the ranks compare checksums of their parameters now and then, often at first::

    after update   1  2  4  8 ... 512   1000   2000   3000 ...      (a period of 1000)

Running statistics and other persistent values may differ and are left out.
"""

from __future__ import annotations

import operator
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import chainer
import numpy as np

from mnx.arrays import Array, module_of
from mnx.errors import ArgumentError, MismatchError
from mnx.health.failures import ranges

if TYPE_CHECKING:
    from mnx.communicators import Communicator

PERIOD = 1000  # updates
_SHOWN = 8  # parameters in the error


class DriftCheck:
    """Counts the updates, and compares the ranks' parameters after those that are due.

    Parameters
    ----------
    comm : Communicator
        With ``MNX_CHECK=0`` it compares nothing.
    period : int
        Updates between two comparisons in the long run; 0: never compare.
    """

    def __init__(self, comm: Communicator, period: int) -> None:
        self.period = period
        self._comm = comm
        self._n_updates = 0

    def restart(self) -> None:
        """Compare often again: the model is another one."""
        self._n_updates = 0

    def after_update(self, model: chainer.Link) -> None:
        """Count an update. Collective: all ranks call it.

        Raises
        ------
        MismatchError
            The ranks' parameters differ (on all ranks).
        """
        self._n_updates += 1
        if (
            self._comm.size > 1
            and self._comm.keeps_equal
            and self._comm.meetings.checks
            and is_due(self._n_updates, self.period)
        ):
            compare(model, self._comm)


def period_of(value: int | None, environ: Mapping[str, str] = os.environ) -> int:
    """Return the period that a user gave, or else that of `MNX_CHECK_EVERY`, or else 1000."""
    text = environ.get('MNX_CHECK_EVERY') or PERIOD if value is None else value
    try:
        period = int(text) if isinstance(text, str) else operator.index(text)
    except (TypeError, ValueError):
        period = -1
    if period < 0:
        raise ArgumentError(
            'create_multi_node_optimizer: check_every (MNX_CHECK_EVERY) is wrong, expected a '
            f'number of updates, 0 for no comparison, but got {text!r}. Set it anew or leave it '
            'out.'
        )
    return period


def is_due(n_updates: int, period: int) -> bool:
    """Tell whether the ranks compare their parameters after so many updates.

    >>> [n for n in range(1, 3001) if is_due(n, 1000)]
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]
    >>> [n for n in range(1, 3001) if is_due(n, 0)]
    []
    """
    if n_updates < period:
        return n_updates & (n_updates - 1) == 0  # a power of two
    return period > 0 and n_updates % period == 0


def compare(model: chainer.Link, comm: Communicator) -> None:
    """Raise on all ranks if their parameters differ. Collective: all ranks call it."""
    mine = {name: checksum(p.array) for name, p in model.namedparams(include_uninit=False)}
    digest = zlib.crc32(repr(sorted(mine.items())).encode())
    if len(set(comm.allgather_obj(digest))) > 1:
        raise MismatchError(explain(comm.allgather_obj(mine)))


def checksum(array: Array) -> int:
    """Return a checksum of the bits of `array`, computed where it is.

    On a CPU a CRC, on a GPU the sum of the bits: neither is copied, both pass once over memory.
    """
    if module_of(array) is np:
        return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sum_of_bits(array)


def sum_of_bits(array: Array) -> int:
    """Return the sum of the array's numbers, their bits read as integers, modulo 2**64."""
    flat = module_of(array).ascontiguousarray(array).reshape(-1)
    return int(flat.view(f'u{array.itemsize}').sum(dtype=np.uint64))


def differences(everyone: Sequence[Mapping[str, int]]) -> dict[str, list[int]]:
    """Return, for each parameter, the ranks that have not what most have (of two halves, rank 0's).

    >>> differences([{'/W': 1, '/b': 2}, {'/W': 1, '/b': 3}, {'/W': 1, '/b': 2}])
    {'/b': [1]}
    """
    found = {}
    for name in sorted({name for checksums in everyone for name in checksums}):
        values = [checksums.get(name) for checksums in everyone]
        usual = Counter(values).most_common(1)[0][0]  # the first of those that are as frequent
        if odd := [rank for rank, value in enumerate(values) if value != usual]:
            found[name] = odd
    return found


def explain(everyone: Sequence[Mapping[str, int]]) -> str:
    """Return the text of the error, the same on every rank."""
    found = differences(everyone)
    lines = [f'  {name} on rank(s) {ranges(ranks)}' for name, ranks in found.items()]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f'  and {len(lines) - _SHOWN} more']
    n_params = len({name for checksums in everyone for name in checksums})
    head = (
        f'update: the copies of the model have drifted apart: {len(found)} of {n_params} '
        f'parameters are not the same on all {len(everyone)} ranks.'
    )
    return '\n'.join([head, *lines, _ADVICE])


_ADVICE = (
    'All ranks got the same gradients, so look for what else changes parameters: values set or '
    'loaded on some ranks only, an update rule with numbers of its own (param.update_rule), a '
    'hook or an update rule that draws random numbers. Do it alike on all ranks; '
    "comm.bcast_data(model) makes all equal to rank 0's."
)
