"""Means over ranks of what a model keeps besides its parameters, such as running statistics."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.training import PRIORITY_WRITER, Extension

from mnx.arrays import is_array

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


class AllreducePersistent(Extension):
    """Replace the persistent values of a model by their means over the ranks.

    For the running means and variances of a ``BatchNormalization`` that sees one rank's batches
    only, before they are used in an evaluation. Those of `MultiNodeBatchNormalization` are equal
    on all ranks without it.

    Real and complex numbers are replaced, in arrays (in place) and NumPy's scalars. What counts
    is left alone: integers and bools, and whatever has no dtype.

    Parameters
    ----------
    model : chainer.Link
        Of the same structure on all ranks.
    comm : CommunicatorBase
    """

    trigger = 1, 'epoch'
    priority = PRIORITY_WRITER + 1  # before evaluators, which are writers

    def __init__(self, model: chainer.Link, comm: CommunicatorBase) -> None:
        self.model = model
        self.comm = comm

    def __call__(self, trainer: Any = None) -> None:
        """Take the means. Collective: all ranks call it; it works without a trainer, too.

        Raises
        ------
        MismatchError
            The ranks' values differ in name, shape or dtype (on all ranks).
        """
        with self.comm.together('AllreducePersistent') as meeting:
            found = list(_inexact_persistents(self.model))
            described = [f'{path}/{name} {_kind(value)}' for path, name, _, value in found]
            meeting.bring(described)
            meeting.detail(lambda: described)
        for _, name, link, value in found:
            if isinstance(value, np.generic):
                setattr(link, name, self.comm.allreduce(np.asarray(value), 'mean')[()])
            else:
                value[...] = self.comm.allreduce(value, 'mean')


def _inexact_persistents(model: chainer.Link) -> Iterator[tuple[str, str, chainer.Link, Any]]:
    for path, link in sorted(model.namedlinks(), key=operator.itemgetter(0)):
        for name in sorted(link._persistent):
            value = getattr(link, name)
            if _is_inexact(value):
                yield path, name, link, value


def _is_inexact(value: Any) -> bool:
    return is_array(value) and (value.dtype.kind in 'fc' or value.dtype.name == 'bfloat16')


def _kind(value: Any) -> str:
    return f'{value.dtype}{value.shape}'
