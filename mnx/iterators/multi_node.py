"""One rank reads, all ranks have the batch.

    master   next(actual) ──► batch, epoch, position ... ──┐
    others   wait                                          └─►  the same, one broadcast a batch

The batch travels as an object whose arrays are sent as they are, so nothing is asked of its
structure and nothing is cast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chainer.dataset import Iterator
from chainer.serializer import Serializer
from chainer.serializers import DictionarySerializer

from mnx.errors import ArgumentError, DtypeError, explain

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

_TOLD = (  # what updaters, triggers and progress bars ask an iterator
    'epoch',
    'epoch_detail',
    'previous_epoch_detail',
    'current_position',
    'is_new_epoch',
    'batch_size',
    'repeat',
)


def create_multi_node_iterator(
    actual_iterator: Any, communicator: CommunicatorBase, rank_master: int = 0
) -> MultiNodeIterator:
    """Wrap an iterator so that all ranks get the batches of the master.

    For models whose parts stand on several ranks and that all need the input. Only the master
    holds the data. Collective: all ranks call it.

    Parameters
    ----------
    actual_iterator : chainer.dataset.Iterator
        On the master, any iterator. Ignored on the other ranks (None is usual).
    communicator : CommunicatorBase
    rank_master : int
        The rank whose iterator is read.

    Returns
    -------
    MultiNodeIterator
        ``next``, ``reset`` and ``serialize`` are collective.

    Raises
    ------
    ArgumentError, DtypeError
        `rank_master` is not a rank; its `actual_iterator` is none (on all ranks).

    See Also
    --------
    create_synchronized_iterator : Sends no batches, where every rank holds the data.

    Examples
    --------
    >>> import mnx
    >>> from chainer.iterators import SerialIterator
    >>> comm = mnx.create_communicator('local')
    >>> batches = SerialIterator([1, 2, 3], 2, shuffle=False) if comm.rank == 0 else None
    >>> iterator = mnx.iterators.create_multi_node_iterator(batches, comm)
    >>> iterator.next(), iterator.next(), iterator.epoch
    ([1, 2], [3, 1], 1)
    """
    return MultiNodeIterator(actual_iterator, communicator, rank_master)


class MultiNodeIterator(Iterator):
    """What `create_multi_node_iterator` returns.

    On the master everything but the methods below is read from, and written to, the actual
    iterator. Elsewhere there is what the master told with its last batch: ``epoch``,
    ``epoch_detail``, ``previous_epoch_detail``, ``current_position``, ``is_new_epoch``,
    ``batch_size`` and ``repeat``, as far as its iterator has them.
    """

    def __init__(self, actual: Any, comm: CommunicatorBase, master: int) -> None:
        self._actual: Any = None
        self._told: dict[str, Any] = {}
        self._comm = comm
        self._master = master
        with comm.together('create_multi_node_iterator') as meeting:
            meeting.bring(f'rank_master={master}')
            _check_rank(comm, master)
            if comm.rank == master:
                _check_iterator(actual)
                self._actual = actual
        self._can_reset = self._ask('create_multi_node_iterator', lambda: hasattr(actual, 'reset'))

    def __next__(self) -> Any:
        """Return the master's next batch. Collective: all ranks call it.

        Nothing is cast or converted: what the master's iterator serves is what all ranks get.

        Raises
        ------
        StopIteration
            On all ranks, when the master's iterator ends.
        """
        has_ended, batch = self._ask('next', self._read)
        if has_ended:
            raise StopIteration
        return batch

    @property
    def reset(self) -> Callable[[], None]:
        """Start again. Collective; missing, as far as ``hasattr`` sees, where the master's is."""
        if not self._can_reset:
            raise AttributeError('reset')
        return self._reset

    def serialize(self, serializer: Any) -> None:
        """Save or load the state of the master's iterator. Collective: all ranks call it.

        Saving writes the same on every rank, which the actual iterator can load. Loading reads
        it on the master, from what the master is given, and tells the others where it stands.
        """
        saves = isinstance(serializer, Serializer)
        state = self._ask(f'serialize saves={saves}', lambda: self._load_or_collect(serializer))
        if saves:
            for key, value in state.items():
                serializer(key, value)

    def finalize(self) -> None:
        """Let the actual iterator free what it holds. Not collective."""
        if self._actual is not None:
            self._actual.finalize()

    def __getattr__(self, name: str) -> Any:
        if name in ('_actual', '_told'):  # not yet there
            raise AttributeError(name)
        if self._actual is not None:
            return getattr(self._actual, name)
        if name in self._told:
            return self._told[name]
        raise AttributeError(
            f'{name!r}: this rank has no data, and its multi-node iterator knows only what rank '
            f'{self._master} tells: {", ".join(self._told)}.'
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith('_'):
            super().__setattr__(name, value)
        elif self._actual is not None:
            setattr(self._actual, name, value)
        else:
            self._told[name] = value

    def _ask(self, call: str, action: Callable[[], Any]) -> Any:
        """Return what `action` returns on the master, and remember where its iterator stands."""
        answer = None
        with self._comm.together(call):
            if self._actual is not None:
                answer = action(), _standing(self._actual)
        result, told = self._comm.bcast_obj(answer, root=self._master)
        self._told.update(told)
        return result

    def _read(self) -> tuple[bool, Any]:
        try:
            return False, next(self._actual)
        except StopIteration:
            return True, None

    def _reset(self) -> None:
        self._ask('reset', self._reset_actual)

    def _reset_actual(self) -> None:
        self._actual.reset()

    def _load_or_collect(self, serializer: Any) -> dict[str, Any] | None:
        if not isinstance(serializer, Serializer):
            self._actual.serialize(serializer)
            return None
        collected = DictionarySerializer()
        self._actual.serialize(collected)
        return dict(collected.target)


def _standing(iterator: Any) -> dict[str, Any]:
    told = {}
    for name in _TOLD:
        try:
            told[name] = getattr(iterator, name)
        except (AttributeError, ZeroDivisionError):  # an empty epoch has no epoch_detail
            continue
    return told


def _check_rank(comm: CommunicatorBase, master: int) -> None:
    if not 0 <= master < comm.size:
        raise ArgumentError(
            explain(
                'create_multi_node_iterator',
                'rank_master is not a rank',
                f'0 to {comm.size - 1}',
                master,
                rank=comm.rank,
                size=comm.size,
                advice='Name the rank that holds the data',
            )
        )


def _check_iterator(actual: Any) -> None:
    if not hasattr(actual, '__next__'):
        raise DtypeError(
            'create_multi_node_iterator: the master has no iterator, expected a '
            f'chainer.dataset.Iterator but got {type(actual).__name__}. Pass it on the rank that '
            'rank_master names.'
        )
