"""Where the iterators stand in the data: saved as positions in the whole, not in a rank's part.

Beside what Chainer saves of an iterator (order, position, epoch) a rank saves, if its data come
from `scatter_dataset`,

    mnx/iterator:main/whole      of what the data set is a part
    mnx/iterator:main/left       which positions it still has to see in this epoch
    mnx/iterator:main/foreign    which of them it has borrowed from other ranks

so that another number of ranks can deal them out again. Of other data it saves

    mnx/iterator:main/length     of the data set

since data of which each rank reads a part of its own are told by another length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import chainer.datasets
import numpy as np
from chainer.iterators import OrderSampler
from numpy.typing import NDArray

from mnx.datasets.part import DatasetPart, parts_below
from mnx.errors import ArgumentError
from mnx.iterators.synchronized import set_order_sampler
from mnx.training.checkpoints import dealing
from mnx.training.checkpoints.dealing import Part
from mnx.training.snapshot import State

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

_ORDERS = 'order', '_order'  # MultithreadIterator's own name


class InOrder(OrderSampler):
    """Gives the examples in the order of their numbers, as an iterator without a sampler does."""

    def __call__(self, current_order: Any, current_position: int) -> NDArray[np.intp]:
        return np.arange(len(current_order))


def iterators_of(trainer: Any) -> dict[str, Any]:
    """Return the iterators of the updater, by name."""
    return dict(sorted(getattr(trainer.updater, '_iterators', {}).items()))


def prefix_of(name: str) -> str:
    """Return what stands before the names of all that Chainer saves of an iterator."""
    return f'updater/iterator:{name}/'


def is_of_iterators(key: str) -> bool:
    """Tell whether a value says where an iterator stands."""
    return key.startswith(('updater/iterator:', 'mnx/iterator:'))


def capture(trainer: Any, state: State) -> State:
    """Return what has to be saved beside `state`, which holds what Chainer saves."""
    found: State = {}
    for name, iterator in iterators_of(trainer).items():
        parts = _parts(iterator)
        if parts and f'{prefix_of(name)}current_position' in state:
            part, rest = parts[0], _rest(state, prefix_of(name), len(parts[0]))
            if len(part.foreign) and rest.max(initial=0) < len(part):
                _give_back(parts)
            left = dealing.responsible(_bounds(part), part.foreign, rest)
            found[_own(name, 'whole')] = np.asarray(part.whole)
            found[_own(name, 'left')] = left
            found[_own(name, 'foreign')] = part.foreign
        elif (length := _length(iterator)) is not None:
            found[_own(name, 'length')] = np.asarray(length)
    return found


def _length(iterator: Any) -> int | None:
    try:
        return len(iterator.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return None


def _rest(state: Mapping[str, Any], prefix: str, length: int) -> NDArray[np.int64]:
    """Return the numbers of the examples that the iterator still has to give in this epoch."""
    order = _order(state, prefix)
    rest: NDArray[np.int64] = np.arange(length) if order is None else order
    return rest[int(state[f'{prefix}current_position']) :]


def _order(state: Mapping[str, Any], prefix: str) -> NDArray[np.int64] | None:
    """Return the order that an iterator has saved, if it has one."""
    for name in _ORDERS:
        order: NDArray[np.int64] | None = state.get(f'{prefix}{name}')
        if order is not None and not order.dtype.hasobject:  # Chainer's way to save None
            return order
    return None


def prepare(trainer: Any, state: State) -> None:
    """Let iterators without an order have one, if they got one when the data were dealt out."""
    for name, iterator in iterators_of(trainer).items():
        has_none = hasattr(iterator, 'order_sampler') and iterator.order_sampler is None
        if has_none and _order(state, prefix_of(name)) is not None:
            set_order_sampler(iterator, InOrder())
            iterator.reset()


def borrow(trainer: Any, state: State, comm: CommunicatorBase) -> None:
    """Fetch the examples of other ranks' parts that the iterators' orders name. Collective."""
    for name, iterator in iterators_of(trainer).items():
        wanted = state.get(_own(name, 'foreign'), np.empty(0, np.int64))
        wishes = comm.allgather_obj(wanted)
        if not any(map(len, wishes)):
            continue
        for part in _parts(iterator):
            lent = comm.alltoall_obj([_lend(part, wish) for wish in wishes])
            _take_over(part, wanted, lent)


def _lend(part: DatasetPart, wish: NDArray[np.int64]) -> tuple[NDArray[np.int64], Any]:
    owned = _bounds(part).owned
    mine = wish[(wish >= owned.start) & (wish < owned.stop)]
    return mine, part.lend(mine) if len(mine) else []


def _take_over(
    part: DatasetPart, wanted: NDArray[np.int64], lent: Sequence[tuple[NDArray[np.int64], Any]]
) -> None:
    arrived = np.concatenate([positions for positions, _ in lent])
    by_position = np.argsort(arrived)
    places = by_position[np.searchsorted(arrived, wanted, sorter=by_position)]
    joined = chainer.datasets.ConcatenatedDataset(*(examples for _, examples in lent))
    part.borrow(wanted, chainer.datasets.SubDataset(joined, 0, len(wanted), places))


def deal_again(
    trainer: Any, states: Sequence[State], comm: CommunicatorBase
) -> tuple[State, list[str]]:
    """Return what the iterators of this rank have to load, and what is to be told.

    Collective: all ranks call it.

    Parameters
    ----------
    trainer : chainer.training.Trainer
    states : sequence of dict
        What each of the ranks there were has saved of its iterators.
    comm : CommunicatorBase
        Of another number of ranks.

    Raises
    ------
    ArgumentError
        An iterator stands elsewhere on each rank, in data that were not scattered by mnx (on all
        ranks).
    """
    found: State = {}
    notes = []
    for name, iterator in iterators_of(trainer).items():
        with comm.together('resume'):
            parts = _parts(iterator)
            of_name = [_of(name, state) for state in states]
            is_scattered = _check(name, of_name, parts)
            if not is_scattered:
                _check_whole(name, of_name, _length(iterator))
        if is_scattered:
            bounds = comm.allgather_obj(_bounds(parts[0]))
            dealt, note = _dealt(name, of_name, bounds, comm.rank)
            found.update(dealt)
            notes += note
    return found, notes


def _dealt(
    name: str, states: Sequence[State], bounds: Sequence[Part], rank: int
) -> tuple[State, list[str]]:
    left = np.unique(np.concatenate([state[_own(name, 'left')] for state in states]))
    hands = dealing.deal(left, bounds)
    hand, prefix = hands[rank], prefix_of(name)
    shuffles = _order(states[0], prefix) is not None
    shuffle = np.random.default_rng([len(left), rank]) if shuffles else None
    order = dealing.order_of(hand, bounds[rank], shuffle)
    position = len(order) - len(hand.own) - len(hand.foreign)
    n_again = sum(each.n_again for each in hands)
    note = (
        f'{n_again} examples are seen again in this epoch, since {len(left)} are left for '
        f'{len(bounds)} ranks'
    )
    return {
        **{f'{prefix}{name}': order for name in _ORDERS},
        f'{prefix}current_position': np.asarray(position),
        _own(name, 'foreign'): hand.foreign,
    }, [note] * (n_again > 0)


def _check(name: str, states: Sequence[State], parts: Sequence[DatasetPart]) -> bool:
    """Tell whether the iterator's data were scattered; raise if it cannot be dealt out again."""
    wholes = {str(state.get(_own(name, 'whole'), '')) for state in states}
    if wholes == {''} and not parts:
        _check_alike(name, states)
        return False
    expected = {part.whole for part in parts}
    if wholes != expected:
        raise ArgumentError(
            f'resume: the data of iterator {name!r} are dealt out in another way, expected '
            f'{_words(wholes)} but got {_words(expected)}. Call scatter_dataset with the same data '
            'and, if shuffled, the same seed as when the checkpoint was taken.'
        )
    epochs = {int(state[f'{prefix_of(name)}epoch']) for state in states}
    if len(epochs) > 1:
        raise ArgumentError(
            f'resume: iterator {name!r} stood in another epoch on each rank, expected one but got '
            f'{sorted(epochs)}. Start as many processes as then, and scatter the data with '
            'force_equal_length=True.'
        )
    return True


def _check_alike(name: str, states: Sequence[State]) -> None:
    first = states[0]
    for state in states:
        told = [key for key in first if key.startswith(prefix_of(name))]
        if any(not np.array_equal(state[key], first[key]) for key in told):
            raise ArgumentError(
                f'resume: iterator {name!r} cannot go on with another number of ranks, expected '
                'data from scatter_dataset, or the same position on all ranks. Start as many '
                'processes as when the checkpoint was taken.'
            )


def _check_whole(name: str, states: Sequence[State], length: int | None) -> None:
    """Raise in the middle of an epoch of data that are as long as a rank's part of something."""
    at_start = int(states[0].get(f'{prefix_of(name)}current_position', 0)) == 0
    then = {int(state[key]) for state in states if (key := _own(name, 'length')) in state}
    if length is not None and then - {length} and not at_start:
        raise ArgumentError(
            f'resume: the data of iterator {name!r} are others on each number of ranks, expected '
            f'{" or ".join(map(str, sorted(then)))} examples but got {length}, so what is left of '
            'this epoch is not known. Give the iterator what scatter_dataset returns (split and '
            'join data before), or start as many processes as when the checkpoint was taken.'
        )


def warn_of_other_data(trainer: Any, state: State) -> list[str]:
    """Return what is to be told if the data are not those of the checkpoint."""
    told = []
    for name, iterator in iterators_of(trainer).items():
        then, now = state.get(_own(name, 'whole')), {part.whole for part in _parts(iterator)}
        if then is not None and now != {str(then)}:
            told.append(
                f'iterator {name!r} had {_words({str(then)})} and now has {_words(now)}, so this '
                'epoch is not the same; give scatter_dataset a seed'
            )
    return told


def _parts(iterator: Any) -> list[DatasetPart]:
    return parts_below(getattr(iterator, 'dataset', None))


def _bounds(part: DatasetPart) -> Part:
    return Part(part.positions, part.n_owned)


def _give_back(parts: Sequence[DatasetPart]) -> None:
    for part in parts:
        part.borrow(np.empty(0, np.int64), [])


def _of(name: str, state: State) -> State:
    prefixes = (prefix_of(name), _own(name, ''))
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def _own(name: str, what: str) -> str:
    return f'mnx/iterator:{name}/{what}'


def _words(wholes: set[str]) -> str:
    return ' and '.join(
        sorted(whole or 'data that mnx did not scatter' for whole in wholes or {''})
    )
