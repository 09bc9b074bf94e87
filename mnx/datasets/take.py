"""A part of a data set as a data set of its own, which holds nothing of the rest.

======================================  ======================================================
data set                                its part
======================================  ======================================================
NumPy array, memory map                 an array, taken at once
other array (CuPy, h5py)                what it gives for a slice, taken at once
TupleDataset, DictDataset               the same of their columns' parts
SubDataset, what scatter_dataset gives  the part of what is below
ConcatenatedDataset                     the parts of its pieces, behind one another
TransformDataset                        the same transform over the part of what is below
a class given to `register_take`        what the registered function returns
any other with ``get_example``          the object itself and a list of indices (see below)
anything else with items and a length   a list of the examples
======================================  ======================================================

Chainer's data sets make an example when it is asked for: from a file, with a random crop. Asking
once and sending the answer would freeze it, so objects of a class with a ``get_example`` that is
not known here travel whole. Where such a class holds its examples in memory, tell how to cut it
with `register_take`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import chainer.datasets
import numpy as np
from chainer.dataset import DatasetMixin
from numpy.typing import NDArray

Indices: TypeAlias = 'range | NDArray[np.intp]'
_Take = TypeVar('_Take', bound=Callable[[Any, Indices], Any])

# By exact type: a subclass may answer otherwise than the class it derives from.
_TAKES: dict[type, Callable[[Any, Indices], Any]] = {}


def take(dataset: Any, indices: Indices) -> Any:
    """Return a data set of the examples at `indices`, without the others.

    Parameters
    ----------
    dataset : data set
        Anything with a length that gives an example for an index.
    indices : range of step 1, or array of int
        Non-negative positions in `dataset`.

    Returns
    -------
    data set
        Its i-th example is ``dataset[indices[i]]``. It shares no array with `dataset`.
    """
    known = _TAKES.get(type(dataset))
    if known is not None:
        return known(dataset, indices)
    if hasattr(dataset, 'get_example'):
        return Selection(dataset, indices)
    if hasattr(dataset, 'dtype') and hasattr(dataset, 'shape'):
        return _take_from_array(dataset, indices)
    return [dataset[int(i)] for i in indices]


def register_take(cls: type) -> Callable[[_Take], _Take]:
    """Tell how a part of a data set of class `cls` (not of its subclasses) is taken.

    The decorated function gets the data set and the indices and returns a data set of these
    examples that can be pickled.

    Examples
    --------
    >>> class Scaled(DatasetMixin):
    ...     def __init__(self, x, scale):
    ...         self.x, self.scale = x, scale
    ...
    ...     def __len__(self):
    ...         return len(self.x)
    ...
    ...     def get_example(self, i):
    ...         return self.x[i] * self.scale
    >>> @register_take(Scaled)
    ... def take_scaled(dataset, indices):
    ...     return Scaled(take(dataset.x, indices), dataset.scale)
    """

    def register(function: _Take) -> _Take:
        _TAKES[cls] = function
        return function

    return register


class Selection(DatasetMixin):
    """The examples of `dataset` at `indices`, asked for when they are needed.

    Parameters
    ----------
    dataset : data set
    indices : range of step 1, or array of int
    """

    def __init__(self, dataset: Any, indices: Indices) -> None:
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def get_example(self, i: int) -> Any:
        """Return the i-th of the chosen examples."""
        return self._dataset[int(self._indices[i])]


@register_take(np.ndarray)
def _take_rows(dataset: NDArray[Any], indices: Indices) -> NDArray[Any]:
    if isinstance(indices, range):
        return dataset[indices.start : indices.stop].copy()
    return dataset[indices]


def _take_from_array(dataset: Any, indices: Indices) -> Any:
    if isinstance(indices, range):
        return _in_memory(dataset[indices.start : indices.stop])
    # Files (h5py) read rows in ascending order only.
    order = np.argsort(indices)
    return _in_memory(dataset[indices[order]])[np.argsort(order)]


def _in_memory(rows: Any) -> Any:
    if isinstance(rows, np.memmap):
        return np.array(rows)
    return rows.copy()


@register_take(chainer.datasets.TupleDataset)
def _take_tuple(dataset: Any, indices: Indices) -> Any:
    columns = [take(column, indices) for column in dataset._datasets]
    return chainer.datasets.TupleDataset(*columns)


@register_take(chainer.datasets.DictDataset)
def _take_dict(dataset: Any, indices: Indices) -> Any:
    columns = {key: take(column, indices) for key, column in dataset._datasets.items()}
    return chainer.datasets.DictDataset(**columns)


@register_take(chainer.datasets.TransformDataset)
def _take_transform(dataset: Any, indices: Indices) -> Any:
    part = take(dataset._dataset, indices)
    return chainer.datasets.TransformDataset(part, dataset._transform)


@register_take(Selection)
def _take_selection(dataset: Any, indices: Indices) -> Any:
    return take(dataset._dataset, np.asarray(dataset._indices, np.intp)[_as_array(indices)])


@register_take(chainer.datasets.SubDataset)
def take_subset(dataset: Any, indices: Indices) -> Any:
    """Return a part of a ``SubDataset``: the part of what is below it."""
    start, order = dataset._start, dataset._order
    if order is not None:
        below = np.asarray(order, np.intp)[_as_array(indices) + start]
        return take(dataset._dataset, below)
    if isinstance(indices, range):
        return take(dataset._dataset, range(indices.start + start, indices.stop + start))
    return take(dataset._dataset, indices + start)


@register_take(chainer.datasets.ConcatenatedDataset)
def _take_concatenation(dataset: Any, indices: Indices) -> Any:
    wanted = _as_array(indices)
    ends = np.cumsum([len(piece) for piece in dataset._datasets])
    piece_of = np.searchsorted(ends, wanted, side='right')
    parts = [
        take(piece, wanted[piece_of == k] - (ends[k] - len(piece)))
        for k, piece in enumerate(dataset._datasets)
    ]
    # Concatenated, the examples stand piece by piece: lead each wanted position to its own.
    arrived = np.argsort(np.argsort(piece_of, kind='stable'))
    return Selection(chainer.datasets.ConcatenatedDataset(*parts), arrived)


def _as_array(indices: Indices) -> NDArray[np.intp]:
    return np.asarray(indices, np.intp)
