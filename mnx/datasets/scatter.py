"""Cut a data set into one part for each rank.

The root reads; every other rank receives its own part and never holds the rest::

    root       0 1 2 3 4 5 6 7            the order, shuffled or not
               |   |   |   |
               v   v   v   v              take(): arrays at once, wrappers kept
    rank 0   0 1   |   |   |
    rank 1       2 3   |   |              one message each, one after the other:
    rank 2           4 5   |              the root holds one part more than the whole
    rank 3               6 7
"""

from __future__ import annotations

import operator
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnx.datasets.part import DatasetPart
from mnx.datasets.partition import owned_length, part_of
from mnx.datasets.take import Indices, Selection, take
from mnx.errors import ArgumentError, DataError, explain
from mnx.health.meeting import cargo_of

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

# A tag of its own: an object that the user has sent and not yet received is not a part.
_PART_TAG = 20_110


class DataSizeError(DataError):
    """A data set does not tell its length."""


def scatter_dataset(
    dataset: Any,
    comm: CommunicatorBase,
    root: int = 0,
    shuffle: bool = False,
    seed: int | None = None,
    max_buf_len: int = 256 * 1024 * 1024,
    *,
    force_equal_length: bool = True,
) -> DatasetPart:
    """Give every rank its part of the root's data set.

    Collective: all ranks call it with the same `root` and `force_equal_length`; the other
    arguments count at the root only, which warns if `shuffle` or `seed` are others elsewhere.

    Parameters
    ----------
    dataset : data set
        At the root, anything with a length that gives an example for an index. Ignored on the
        other ranks (None is usual). Arrays, lists and Chainer's data sets of them are cut. A
        class with a ``get_example`` of its own travels *whole* to every rank, since only it can
        make its examples, unless `mnx.datasets.register_take` tells how to cut it; see
        `mnx.datasets.take`.
    comm : CommunicatorBase
    root : int
        The rank that holds `dataset`.
    shuffle : bool
        Deal the examples out in the order
        ``numpy.random.RandomState(seed).permutation(len(dataset))``.
    seed : int, optional
        Anything that ``RandomState`` takes; None shuffles differently every time.
    max_buf_len : int
        Kept for scripts written for ChainerMN. Parts of any length travel without it.
    force_equal_length : bool
        Make all parts equally long, so that the ranks' epochs end together. A few examples are
        then held by two ranks; `create_multi_node_evaluator` counts them once.

    Returns
    -------
    DatasetPart
        Behaves as ``chainer.datasets.SubDataset(dataset, b, e, order)`` with the ``(b, e)`` of
        `scatter_index`, and holds nothing else of `dataset`.

    Raises
    ------
    DataSizeError, ArgumentError, MismatchError
        On every rank, when one finds something wrong.

    Notes
    -----
    Bytes moved: each example once, and those that two ranks hold once more; of a data set that
    travels whole, everything once for each other rank.
    """
    call = 'scatter_dataset'
    facts, order = None, None
    with comm.together(call) as meeting:
        root = _checked_root(call, comm, root)
        meeting.bring(f'root={root} force_equal_length={bool(force_equal_length)}')
        meeting.carry(_digest_of_shuffling(shuffle, seed))
        if comm.rank == root:
            length = _length(call, comm, dataset)
            order = _shuffled(call, comm, length, seed) if shuffle else None
            facts = length, _in_words(length, order)
    if comm.rank == root and not meeting.all_brought_the_same():
        _warn_of_other_arguments(shuffle, seed)
    n, whole = comm.bcast_obj(facts, root=root)
    with comm.together(call):
        if comm.rank == root:
            examples = _deal_out(dataset, comm, n, order, force_equal_length)
        else:
            examples = comm.recv_obj(root, tag=_PART_TAG)
    positions = part_of(n, comm.rank, comm.size, force_equal_length=force_equal_length)
    owned = owned_length(n, comm.rank, comm.size, force_equal_length=force_equal_length)
    return DatasetPart(examples, positions, owned, whole)


def _digest_of_shuffling(shuffle: bool, seed: Any) -> bytes:
    return cargo_of(zlib.crc32(repr(seed if shuffle else 'not shuffled').encode()))


def _warn_of_other_arguments(shuffle: bool, seed: Any) -> None:
    warnings.warn(
        f'scatter_dataset: other ranks ask for another shuffle or seed than the root, which deals '
        f'out: shuffle={bool(shuffle)}, seed={seed!r}. Pass the same on all ranks.',
        stacklevel=3,
    )


def scatter_index(
    n_total_samples: int,
    comm: CommunicatorBase,
    root: int = 0,
    *,
    force_equal_length: bool = True,
) -> tuple[int, int]:
    """Return the first index of this rank's part and the one behind its last.

    Collective: all ranks call it with the same `root` and `force_equal_length`.

    Parameters
    ----------
    n_total_samples : int
        Number of examples, at the root; ignored on the other ranks.
    comm : CommunicatorBase
    root : int
    force_equal_length : bool
        As in `scatter_dataset`: equal parts may overlap by an example.

    Returns
    -------
    (int, int)
    """
    call = 'scatter_index'
    with comm.together(call) as meeting:
        root = _checked_root(call, comm, root)
        meeting.bring(f'root={root} force_equal_length={bool(force_equal_length)}')
        count = _checked_count(call, comm, n_total_samples) if comm.rank == root else None
    n = comm.bcast_obj(count, root=root)
    part = part_of(n, comm.rank, comm.size, force_equal_length=force_equal_length)
    return part.start, part.stop


def get_n_iterations_for_one_epoch(
    dataset: Any, local_batch_size: int, comm: CommunicatorBase
) -> int:
    """Return how many batches rank 0's part makes. Deprecated: use a trigger of epochs.

    Collective: all ranks call it, each with its part of the data set and the same batch size.
    """
    _warn_of('get_n_iterations_for_one_epoch')
    return _iterations_of_an_epoch(dataset, local_batch_size, comm)


def get_epoch_trigger(
    n_epochs: int, dataset: Any, local_batch_size: int, comm: CommunicatorBase
) -> tuple[int, str]:
    """Return a trigger of so many epochs in iterations. Deprecated: ``(n_epochs, 'epoch')``.

    Collective: all ranks call it, each with its part of the data set and the same batch size.
    """
    _warn_of('get_epoch_trigger')
    return n_epochs * _iterations_of_an_epoch(dataset, local_batch_size, comm), 'iteration'


def _warn_of(name: str) -> None:
    warnings.warn(
        f"{name} is deprecated; use a trigger such as (1, 'epoch').",
        DeprecationWarning,
        stacklevel=3,
    )


def _iterations_of_an_epoch(dataset: Any, batch_size: Any, comm: CommunicatorBase) -> int:
    call = 'get_n_iterations_for_one_epoch'
    with comm.together(call) as meeting:
        size = _index(batch_size)
        if not size:
            advice = 'Pass the batch size of one rank'
            raise _wrong(call, comm, 'no batch size', 'an int > 0', batch_size, advice)
        meeting.bring(f'local_batch_size={size}')
        length = _length(call, comm, dataset)
    iterations: int = comm.bcast_obj(-(-length // size))
    return iterations


def _checked_root(call: str, comm: CommunicatorBase, root: Any) -> int:
    index = _index(root)
    if index is not None and index < comm.size:
        return index
    advice = 'Name the rank that holds the data set'
    raise _wrong(call, comm, 'root is not a rank', f'0 to {comm.size - 1}', root, advice)


def _checked_count(call: str, comm: CommunicatorBase, n: Any) -> int:
    count = _index(n)
    if count is not None:
        return count
    advice = 'Pass the length of the data set at the root'
    raise _wrong(call, comm, 'the number of examples is no number', 'an int >= 0', n, advice)


def _index(value: Any) -> int | None:
    """Return `value` as an int if it is one (NumPy's are fine), and not negative."""
    try:
        index = operator.index(value)
    except TypeError:
        return None
    return index if index >= 0 else None


def _shuffled(call: str, comm: CommunicatorBase, n: int, seed: Any) -> NDArray[np.intp]:
    try:
        return np.random.RandomState(seed).permutation(n)
    except (TypeError, ValueError) as error:
        advice = 'Pass another seed at the root, or None'
        raise _wrong(call, comm, 'seed is no seed', '0 to 2**32 - 1', seed, advice) from error


def _wrong(
    call: str, comm: CommunicatorBase, wrong: str, expected: str, actual: object, advice: str
) -> ArgumentError:
    return ArgumentError(
        explain(call, wrong, expected, repr(actual), rank=comm.rank, size=comm.size, advice=advice)
    )


def _length(call: str, comm: CommunicatorBase, dataset: Any) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        text = explain(
            call,
            'the data set does not tell its length',
            'something with len()',
            type(dataset).__name__,
            rank=comm.rank,
            size=comm.size,
            advice='Pass one with a __len__ method',
        )
        raise DataSizeError(text) from error


def _deal_out(
    dataset: Any,
    comm: CommunicatorBase,
    n: int,
    order: Any,
    force_equal_length: bool,
) -> Any:
    """Send the others their parts and return the root's own."""
    indices = [
        _indices(part_of(n, rank, comm.size, force_equal_length=force_equal_length), order)
        for rank in range(comm.size)
    ]
    if comm.size == 1:
        return Selection(dataset, indices[0])  # nothing travels, so nothing is copied
    waiting = [rank for rank in range(comm.size) if rank != comm.rank]
    try:
        while waiting:
            comm.send_obj(take(dataset, indices[waiting[0]]), waiting[0], tag=_PART_TAG)
            del waiting[0]
        return take(dataset, indices[comm.rank])
    except BaseException:
        # They wait for a message: let them come to the vote, where they hear of the error.
        for rank in waiting:
            comm.send_obj(None, rank, tag=_PART_TAG)
        raise


def _in_words(length: int, order: NDArray[np.intp] | None) -> str:
    if order is None:
        return f'{length} examples'
    return f'{length} examples, shuffled by {zlib.crc32(order.astype("<i8").tobytes()):08x}'


def _indices(part: range, order: Any) -> Indices:
    return part if order is None else order[part.start : part.stop]
