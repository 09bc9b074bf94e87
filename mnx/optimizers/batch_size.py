"""How many samples a call of the loss function gets: a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import chainer

from mnx.arrays import is_array


def batch_size(args: tuple[Any, ...], kwds: Mapping[str, Any]) -> int | None:
    """Return the length of the first axis of the first array among the arguments.

    Looks into tuples, lists and dicts. A list or tuple without any array in it (such as a batch
    of strings) counts by its length.

    Returns
    -------
    int or None
        None if nothing tells: no arguments, or only scalars.

    >>> import numpy as np
    >>> batch_size((np.zeros((7, 3)), np.zeros(7)), {})
    7
    >>> batch_size((), {'x': [np.zeros((5, 2))]})
    5
    >>> batch_size(('text', 3), {}) is None
    True
    """
    values = [*args, *kwds.values()]
    sizes = (len(x) for value in values for x in _arrays(value))
    lists = (len(value) for value in values if isinstance(value, (list, tuple)))
    return next(sizes, next(lists, None))


def _arrays(value: Any) -> Iterator[Any]:
    """Yield the arrays of at least one axis in `value`, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays(item)
    elif (is_array(value) or isinstance(value, chainer.Variable)) and value.ndim > 0:
        yield value
