"""An evaluator's iterator that serves each example on one rank only, and counts what it served."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnx.datasets.part import owned_mask
from mnx.errors import ArgumentError


class _Count:
    """A number that an iterator shares with its copies."""

    n_served = 0


class EvaluationIterator:
    """Serves the batches of `actual` without the examples that another rank owns.

    Empty batches are left out: an evaluator cannot make arrays of them, and a rank without
    examples has nothing else.

    Not derived from Chainer's Iterator, which finalises itself when it is deleted: `actual` is
    needed for the next evaluation.

    Parameters
    ----------
    actual : chainer.dataset.Iterator
        An iterator of one epoch.

    Attributes
    ----------
    n_served : int
        Number of examples served since the object was made, by its copies too.
    n_owned : int
        Number of examples of the data set that no other rank owns; 0 if it does not tell.
    """

    def __init__(self, actual: Any) -> None:
        self.actual = actual
        self._count = _Count()
        dataset: Any = getattr(actual, 'dataset', None)
        self._is_empty = hasattr(dataset, '__len__') and len(dataset) == 0
        self._mask = owned_mask(dataset)
        length = len(dataset) if hasattr(dataset, '__len__') else 0
        self.n_owned = length if self._mask is None else int(self._mask.sum())
        self._order = self._order_of_this_epoch()
        self._position = 0

    def __next__(self) -> list[Any]:
        if self._is_empty:  # Chainer's iterators divide by the length
            raise StopIteration
        batch: list[Any] = []
        while not batch:
            batch = self._without_others(next(self.actual))
        self._count.n_served += len(batch)
        return batch

    next = __next__

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __copy__(self) -> EvaluationIterator:
        """Copy what is read from, too: evaluators copy an iterator that cannot be reset."""
        twin = EvaluationIterator(copy.copy(self.actual))
        twin._count = self._count  # who made this one asks it, not the copy, how many were served
        return twin

    @property
    def n_served(self) -> int:
        return self._count.n_served

    def __getattr__(self, name: str) -> Any:
        # Progress bars and evaluators read what their kind of iterator has (epoch_detail ...).
        if name in ('actual', '_count'):
            raise AttributeError(name)
        return getattr(self.actual, name)

    @property
    def reset(self) -> Any:
        """Start again; missing, as far as ``hasattr`` sees, where `actual` cannot."""
        actual_reset = self.actual.reset

        def reset() -> None:
            actual_reset()
            self._order = self._order_of_this_epoch()
            self._position = 0

        return reset

    def finalize(self) -> None:
        """Let `actual` free what it holds."""
        self.actual.finalize()

    def _without_others(self, batch: list[Any]) -> list[Any]:
        if self._mask is None:
            return batch
        indices = self._order[self._position : self._position + len(batch)]
        self._position += len(batch)
        return [example for example, i in zip(batch, indices, strict=True) if self._mask[i]]

    def _order_of_this_epoch(self) -> NDArray[np.intp]:
        """Return the indices of the examples in the order in which they will be served."""
        if self._mask is None:
            return np.empty(0, np.intp)
        state: Any = getattr(self.actual, '_state', None)
        if not hasattr(state, 'order'):
            raise ArgumentError(
                'create_multi_node_evaluator: the ranks share examples (they were scattered with '
                f'force_equal_length=True), and {type(self.actual).__name__} does not tell the '
                'order in which it serves them. Scatter with force_equal_length=False, or use an '
                'iterator of Chainer.'
            )
        return np.arange(len(self._mask)) if state.order is None else np.asarray(state.order)
