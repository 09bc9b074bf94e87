"""One value for all ranks out of what each of them observed.

iteration   1     2     3          the trigger fires: all histories to rank 0,
rank 0     1.0   3.0   2.0   ─┐    the aggregator there, its result to all
rank 1     4.0    -    5.0   ─┴─►  mean of 5 values = 3.0
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.backends import cuda
from chainer.training import PRIORITY_EDITOR, Extension, get_trigger

from mnx.arrays import is_array
from mnx.errors import MismatchError
from mnx.training.weighted_sums import exact_sum

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

Histories = Sequence[Sequence[Any]]


class ObservationAggregator(Extension):
    """Aggregate an observed value over ranks, and over the iterations since the last time.

    Parameters
    ----------
    comm : CommunicatorBase
    original_key : str
        Name of the value in ``trainer.observation``. It may be missing in some iterations or on
        some ranks: what is there counts.
    aggregated_key : str, optional
        Under which name all ranks find the result; the same one by default.
    comm_trigger : trigger
        When to aggregate; it must fire at the same iterations on all ranks.
    aggregator : callable, optional
        Called on rank 0 with one list of values for each rank. By default the mean of all
        values, each of which counts the same, as a float64.

    Notes
    -----
    Nothing is written when no rank has observed a value. Snapshots hold the values that wait.
    """

    trigger = 1, 'iteration'
    priority = PRIORITY_EDITOR

    def __init__(
        self,
        comm: CommunicatorBase,
        original_key: str,
        aggregated_key: str | None = None,
        *,
        comm_trigger: Any = (1, 'iteration'),
        aggregator: Callable[[Histories], Any] | None = None,
    ) -> None:
        self.comm = comm
        self.original_key = original_key
        self.aggregated_key = aggregated_key or original_key
        self.comm_trigger = get_trigger(comm_trigger)
        self.aggregator = aggregator or mean_of_all
        self._history: list[Any] = []

    def __call__(self, trainer: Any) -> None:
        """Note the value; aggregate when it is time. Collective: all ranks call it."""
        observation = trainer.observation
        self._history += self._found_in(observation)
        if self.comm_trigger(trainer):
            found = self._aggregate()
            if found:
                observation[self.aggregated_key] = found[0]

    def serialize(self, serializer: Any) -> None:
        """Save or load the state of the trigger and the values since it fired."""
        if hasattr(self.comm_trigger, 'serialize'):
            self.comm_trigger.serialize(serializer['comm_trigger'])
        history = np.frombuffer(pickle.dumps(self._history), np.uint8)
        if isinstance(serializer, chainer.Serializer):
            serializer('history', history)
        else:
            self._history = pickle.loads(serializer('history', None).tobytes())

    @contextmanager
    def with_one_more(self, observation: Mapping[str, Any]) -> Iterator[None]:
        """Save inside as if `observation` had been noted; load as ever."""
        before = self._history
        self._history = saved = before + self._found_in(observation)
        yield
        if self._history is saved:
            self._history = before

    def _found_in(self, observation: Mapping[str, Any]) -> list[Any]:
        key = self.original_key
        return [_on_host(observation[key])] if key in observation else []

    def _aggregate(self) -> list[Any]:
        """Return a list with the result, or an empty one."""
        histories = self.comm.gather_obj(self._history)
        self._history = []
        found = []
        with self.comm.together('ObservationAggregator'):
            if histories is not None and any(histories):
                found = [self.aggregator(histories)]
        received: list[Any] = self.comm.bcast_obj(found)
        return received


def mean_of_all(histories: Histories) -> Any:
    """Return the mean of all values: a float that does not depend on their order, or an array.

    >>> mean_of_all([[1e100, 1.0], [], [-1e100]]) == 1 / 3
    True
    """
    values = [np.asarray(value, np.float64) for history in histories for value in history]
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise MismatchError(
            f'ObservationAggregator: the values have different shapes {sorted(shapes)}. '
            'Observe one shape, or pass an aggregator.'
        )
    if shapes == {()}:
        return exact_sum([float(value) for value in values]) / len(values)
    return np.sum(values, axis=0) / len(values)


def _on_host(value: Any) -> Any:
    if isinstance(value, chainer.Variable):
        value = value.array
    if not is_array(value):
        return value
    # a copy: the array may be used again before its turn comes
    return cuda.to_cpu(value).copy()
