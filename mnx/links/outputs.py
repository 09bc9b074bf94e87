"""What links return, on its way to other ranks and to the caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import chainer

from mnx.arrays import is_array
from mnx.errors import DtypeError
from mnx.functions.connect import pseudo_connect
from mnx.functions.node import Input, Variable


def sendable(y: Any, call: str) -> list[Input]:
    """Return the variables of a message: that or those which a link has returned.

    Raises
    ------
    DtypeError
        It is something else than a variable or an array, or a tuple or list of such.
    """
    ys = list(y) if isinstance(y, (tuple, list)) else [y]
    wrong = [x for x in ys if not _is_value(x)]
    if wrong or not ys:
        what = f'a {type(wrong[0]).__name__} in it' if wrong else f'an empty {type(y).__name__}'
        raise DtypeError(
            f'{call}: cannot send the output of a component, expected a Variable or several in a '
            f'tuple but got {what}. Return variables only, or use rank_out=None.'
        )
    return ys


def received(ys: Sequence[Variable]) -> Any:
    """Return a message as the argument of a link: a variable, or a tuple of several."""
    return ys[0] if len(ys) == 1 else tuple(ys)


def connected(token: Variable | None, output: Any) -> Any:
    """Return `output` with each variable in it made dependent on `token`, and on all others.

    Parameters
    ----------
    token : Variable or None
    output : Variable, array, or tuple, list or dict of such, to any depth
        Anything else in it stays as it is.
    """
    values = list(values_in(output))
    return _replaced(output, iter(pseudo_connect(token, *values)))


def values_in(output: Any) -> Iterator[Input]:
    """Yield the variables and arrays in tuples, lists and dicts of any depth."""
    if _is_value(output):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from values_in(item)
    elif isinstance(output, dict):
        yield from values_in(list(output.values()))


def _replaced(output: Any, values: Iterator[Variable]) -> Any:
    if _is_value(output):
        return next(values)
    if isinstance(output, (tuple, list)):
        items = [_replaced(item, values) for item in output]
        if hasattr(output, '_make'):  # a named tuple
            return output._make(items)
        return items if isinstance(output, list) else tuple(items)
    if isinstance(output, dict):
        return {key: _replaced(item, values) for key, item in output.items()}
    return output


def _is_value(x: Any) -> bool:
    return is_array(x) or (isinstance(x, chainer.Variable) and x.array is not None)
