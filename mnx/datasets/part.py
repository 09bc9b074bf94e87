"""What `scatter_dataset` gives: a part that knows its place in the whole."""

from __future__ import annotations

from typing import Any

import chainer.datasets
import numpy as np
from numpy.typing import NDArray

from mnx.datasets.take import Selection, register_take, take, take_subset


class DatasetPart(chainer.datasets.SubDataset):
    """One rank's part of a scattered data set.

    Parameters
    ----------
    examples : data set
        The examples of this part only.
    positions : range
        Their positions in the (shuffled) whole.
    n_owned : int
        How many of them, counted from the first, belong to this rank alone. The others are held
        by another rank too, which owns them: they make the parts equally long, and whoever
        counts examples leaves them out.
    whole : str
        Of what this is a part, in words that are equal only for the same length and order.

    Attributes
    ----------
    positions : range
    n_owned : int
    whole : str
    foreign : array of int
        Positions of the examples that are lent, see `borrow`.
    """

    def __init__(self, examples: Any, positions: range, n_owned: int, whole: str = '') -> None:
        super().__init__(examples, 0, len(examples))
        self.positions = positions
        self.n_owned = n_owned
        self.whole = whole
        self.borrow(np.empty(0, np.int64), [])

    def borrow(self, positions: NDArray[np.int64], examples: Any) -> None:
        """Have examples of other parts behind one's own, as ``self[len(self)]`` and so on.

        They do not count in the length: only an order that names them finds them. A training
        that goes on with another number of ranks needs them until its epoch ends.
        """
        self.foreign = positions
        self._lent = examples

    def get_example(self, i: int) -> Any:
        """Return the i-th example."""
        if len(self) <= i < len(self) + len(self.foreign):
            return self._lent[i - len(self)]
        return super().get_example(i)

    def lend(self, positions: NDArray[np.int64]) -> Any:
        """Return the examples at some positions of the whole, which this part must hold."""
        return take(self._dataset, np.asarray(positions - self.positions.start, np.intp))


register_take(DatasetPart)(take_subset)


def owned_mask(dataset: Any) -> NDArray[np.bool_] | None:
    """Return which examples of `dataset` its rank owns, or None where it owns them all.

    Looks through Chainer's wrappers, and through a wrapper of the user's own where one of its
    attributes is as long as itself and holds a part.
    """
    if isinstance(dataset, DatasetPart):
        return _mask_of_part(dataset)
    if type(dataset) is chainer.datasets.SubDataset:
        return _mask_of_subset(dataset)
    if isinstance(dataset, Selection):
        return _mask_of_selection(dataset)
    if type(dataset) is chainer.datasets.ConcatenatedDataset:
        return _mask_of_concatenation(dataset)
    if type(dataset) in (chainer.datasets.TupleDataset, chainer.datasets.DictDataset):
        columns = dataset._datasets
        return _mask_of_columns(columns.values() if isinstance(columns, dict) else columns)
    return _mask_of_columns(_attributes_as_long_as(dataset))


def _mask_of_part(part: DatasetPart) -> NDArray[np.bool_] | None:
    if part.n_owned == len(part):
        return None
    return np.arange(len(part)) < part.n_owned


def _mask_of_subset(subset: Any) -> NDArray[np.bool_] | None:
    below = owned_mask(subset._dataset)
    if below is None:
        return None
    if subset._order is not None:
        below = below[np.asarray(subset._order, np.intp)]
    return below[subset._start : subset._finish]


def _mask_of_selection(selection: Selection) -> NDArray[np.bool_] | None:
    below = owned_mask(selection._dataset)
    return None if below is None else below[np.asarray(selection._indices, np.intp)]


def _mask_of_concatenation(dataset: Any) -> NDArray[np.bool_] | None:
    masks = [(owned_mask(piece), len(piece)) for piece in dataset._datasets]
    if all(mask is None for mask, _ in masks):
        return None
    joined: NDArray[np.bool_] = np.concatenate(
        [np.ones(n, bool) if mask is None else mask for mask, n in masks]
    )
    return joined


def _mask_of_columns(columns: Any) -> NDArray[np.bool_] | None:
    masks = [mask for mask in map(owned_mask, columns) if mask is not None]
    together: NDArray[np.bool_] | None = np.logical_and.reduce(masks) if masks else None
    return together


def _attributes_as_long_as(dataset: Any) -> list[Any]:
    """Return what a wrapper may wrap: other data sets of its own length."""
    if not hasattr(dataset, '__len__') or isinstance(dataset, (np.ndarray, list, tuple)):
        return []
    return [
        value
        for value in getattr(dataset, '__dict__', {}).values()
        if isinstance(value, _WRAPPED) and len(value) == len(dataset)
    ]


_WRAPPED = (
    chainer.dataset.DatasetMixin,
    chainer.datasets.TupleDataset,
    chainer.datasets.DictDataset,
)


def parts_below(dataset: Any) -> list[DatasetPart]:
    """Return the parts that a data set consists of, if its i-th example is made of their i-th.

    Looks through Chainer's wrappers, and through one of the user's own as `owned_mask` does.
    """
    if isinstance(dataset, DatasetPart):
        return [dataset]
    if isinstance(dataset, _OTHER_INDICES):
        return []
    if type(dataset) in (chainer.datasets.TupleDataset, chainer.datasets.DictDataset):
        columns = dataset._datasets
        below = list(columns.values() if isinstance(columns, dict) else columns)
    else:
        below = _attributes_as_long_as(dataset)
    return [part for column in below for part in parts_below(column)]


_OTHER_INDICES = (
    chainer.datasets.SubDataset,
    chainer.datasets.ConcatenatedDataset,
    Selection,
)
