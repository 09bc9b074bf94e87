"""How many samples a call of the loss function gets: a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import chainer

from mnx.arrays import is_array


def batch_size(args: tuple[Any, ...], kwds: Mapping[str, Any]) -> int | None:
    """Return the number of samples among the arguments, told by the first that tells.

    An array counts by the length of its first axis. So does a list: Chainer hands over a batch of
    sequences as a list of arrays. Tuples and dicts are looked into, dicts in their order.

    Returns
    -------
    int or None
        None if nothing tells: no arguments, or only scalars.

    >>> import numpy as np
    >>> batch_size((np.zeros((7, 3)), np.zeros(7)), {})
    7
    >>> batch_size((), {'x': [np.zeros(5), np.zeros(3)]})
    2
    >>> batch_size(('text', 3), {}) is None
    True
    """
    return next(_sizes((*args, *kwds.values())), None)


def other_sizes(args: tuple[Any, ...], kwds: Mapping[str, Any]) -> str:
    """Return in words that the arguments tell different numbers of samples; '' if they agree.

    The first need not be the right one then. That does no harm where all ranks have the same
    sizes, since their shares are equal whichever counts. So it is for the ranks to compare.

    >>> import numpy as np
    >>> other_sizes((np.zeros((9, 4, 3)), np.zeros(4)), {})  # nine steps of four samples
    'arguments of 9 or 4 samples (which counts? give weight=) '
    >>> other_sizes((np.zeros((7, 3)), np.zeros(7)), {})
    ''
    """
    sizes = list(dict.fromkeys(_sizes((*args, *kwds.values()))))
    if len(sizes) < 2:
        return ''
    return f'arguments of {" or ".join(map(str, sizes))} samples (which counts? give weight=) '


def _sizes(value: Any) -> Iterator[int]:
    """Yield the numbers of samples that the parts of `value` tell, in order."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for item in value:
            yield from _sizes(item)
    elif isinstance(value, list) or _is_batch(value):
        yield len(value)


def _is_batch(value: Any) -> bool:
    return (is_array(value) or isinstance(value, chainer.Variable)) and value.ndim > 0
