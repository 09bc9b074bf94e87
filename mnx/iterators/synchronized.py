"""Every rank holds the data and takes the same examples of it, by a common random order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from chainer.iterators import ShuffleOrderSampler

from mnx.errors import ArgumentError

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


def create_synchronized_iterator(actual_iterator: Any, communicator: CommunicatorBase) -> Any:
    """Make an iterator shuffle in the same way on all ranks.

    For models whose parts stand on several ranks that all hold the data: after this call no
    message is needed. Collective: all ranks call it.

    Parameters
    ----------
    actual_iterator : chainer.dataset.Iterator
        An iterator with an ``order_sampler``, over a data set of the same length, with the same
        batch size, on all ranks.
    communicator : CommunicatorBase

    Returns
    -------
    chainer.dataset.Iterator
        `actual_iterator` itself, at its start, with an order of its own; its seed is drawn
        from NumPy's global generator, and rank 0's counts.

    Raises
    ------
    ArgumentError
        The iterator has no ``order_sampler``; lengths or batch sizes differ between ranks (on all
        ranks).

    Notes
    -----
    As in ChainerMN, it shuffles then even if it was made with ``shuffle=False``. Without
    shuffling, iterators of the same data are in step as they are.
    """
    with communicator.together('create_synchronized_iterator') as meeting:
        _check(actual_iterator)
        meeting.bring(_facts(actual_iterator))
    # from the global generator, as Chainer's own shuffling: np.random.seed makes it repeatable
    seed = communicator.bcast_obj(np.random.randint(2**31))  # noqa: NPY002
    set_order_sampler(actual_iterator, ShuffleOrderSampler(np.random.RandomState(seed)))
    with communicator.together('create_synchronized_iterator'):
        actual_iterator.reset()
    return actual_iterator


def set_order_sampler(iterator: Any, sampler: Any) -> None:
    """Let an iterator take its orders from `sampler`, from its next `reset` on."""
    iterator.order_sampler = sampler
    # MultiprocessIterator reads ahead in a thread, which has the sampler of its beginning.
    prefetching = getattr(iterator, '_prefetch_loop', None)
    if prefetching is not None:
        prefetching.order_sampler = sampler


def _check(iterator: Any) -> None:
    if not hasattr(iterator, 'order_sampler'):
        raise ArgumentError(
            'create_synchronized_iterator: the iterator has no order to set, expected an '
            f'attribute order_sampler but got a {type(iterator).__name__} without. Use one of '
            "Chainer's iterators, or create_multi_node_iterator."
        )


def _facts(iterator: Any) -> str:
    dataset: Any = getattr(iterator, 'dataset', None)
    length = len(dataset) if hasattr(dataset, '__len__') else None
    return f'length={length} batch_size={getattr(iterator, "batch_size", None)}'
