"""The parameters of a model, in an order all ranks share, found again fast.

A gradient exchange of 400 small arrays takes 0.1 ms; walking through the model, sorting 400 names
and hashing 400 shapes takes longer. So what follows from the structure of a model is kept, and
only looked through again when the structure has changed.
"""

from __future__ import annotations

import itertools
import operator
import zlib
from collections.abc import Sequence
from typing import Any

import chainer
import numpy as np

from mnx import kernels
from mnx.arrays import Array, module_of, place_of, reduction
from mnx.packing import Bucket, plan

# as id, which is ten times as slow where some library listens to Python's audit events
_address = object.__hash__

_base = operator.attrgetter('base')
_dtype = operator.attrgetter('dtype')
_shape = operator.attrgetter('shape')


class Layout:
    """Names, shapes and dtypes of a list of arrays, and how they travel.

    Attributes
    ----------
    names : list of str
    kinds : list of (shape, dtype)
    dtypes : set of numpy.dtype
    types : set of type
        NumPy's arrays, CuPy's, or both.
    place : str
        Where all of them are: 'cpu' or 'gpu'.
    digest : int
        Equal on ranks with equal layouts.
    brief : str
        The digest, and of how many arrays, for messages.
    nbytes : int
        Of all arrays together.
    whole_numbers : list of str
        Names of those that are integers or bools, which have no mean of their dtype.
    """

    def __init__(self, names: Sequence[str], arrays: Sequence[Array]) -> None:
        self.names = list(names)
        self.kinds = [(x.shape, x.dtype) for x in arrays]
        self._shapes, self._dtypes = list(map(_shape, arrays)), list(map(_dtype, arrays))
        self.dtypes, self.types = set(self._dtypes), set(map(type, arrays))
        self.place = place_of(*arrays)
        described = [(n, s, d.str) for n, (s, d) in zip(self.names, self.kinds, strict=True)]
        self.digest = zlib.crc32(f'{self.place}{described}'.encode())
        self.brief = f'{len(self.names)} arrays layout={self.digest:08x}'
        self.nbytes = sum(x.nbytes for x in arrays)
        self.whole_numbers = [n for n, (_, d) in zip(names, self.kinds, strict=True) if is_whole(d)]
        self._plans: dict[tuple[np.dtype[Any] | None, float, bool], list[Bucket]] = {}

    def is_of(self, names: Sequence[str], arrays: list[Array]) -> bool:
        """Tell whether these arrays, on a CPU and each in memory of its own, have this layout.

        Not tried without `mnx.kernels`.
        """
        on_cpu = self.place == 'cpu'
        return on_cpu and kernels.alike(arrays, self._shapes, self._dtypes) and self.names == names

    def describes(self, names: Sequence[str], arrays: Sequence[Array], types: set[type]) -> bool:
        """Tell whether these arrays, of these types, have this layout."""
        return (
            self.types == types
            and self.names == names
            and self._dtypes == list(map(_dtype, arrays))
            and self._shapes == list(map(_shape, arrays))
        )

    def describe(self) -> list[str]:
        """Return one line for each array."""
        where = ' on a GPU' if self.place == 'gpu' else ''
        return [f'{n} {d}{s}{where}' for n, (s, d) in zip(self.names, self.kinds, strict=True)]

    def sum_plan(
        self, grad_dtype: np.dtype[Any] | None, pack_below: float, as_it_is: bool = False
    ) -> list[Bucket]:
        """Return the buckets for a sum, in the dtypes that are added up.

        `as_it_is`: in `grad_dtype` itself, also if sums of that dtype are made in another one.
        """
        key = grad_dtype, pack_below, as_it_is
        if key not in self._plans:
            sent = [exchanged(d, grad_dtype) for _, d in self.kinds]
            kept = grad_dtype if as_it_is else None
            wires = [d if d is kept else reduction(d, 'sum').wire for d in sent]
            self._plans[key] = plan([shape for shape, _ in self.kinds], wires, pack_below)
        return self._plans[key]

    def copy_plan(self, pack_below: float) -> list[Bucket]:
        """Return the buckets for a copy: every array in its own dtype, bit by bit."""
        shapes, dtypes = [k[0] for k in self.kinds], [k[1] for k in self.kinds]
        return plan(shapes, dtypes, pack_below)


class ParameterTable:
    """The parameters of one model, sorted by name, and the layout of their last gradients."""

    def __init__(self, model: chainer.Link) -> None:
        named = sorted(model.namedparams(), key=operator.itemgetter(0))
        places = {
            id(link.__dict__[name]): (link.__dict__, name)
            for link in model.links()
            for name in link._params
        }
        self.names = [name for name, _ in named]
        self._places = [places[id(param)] for _, param in named]
        self._place_of = dict(zip(self.names, self._places, strict=True))
        # not the model itself, so that it can be forgotten; the children, so that none of them
        # is taken for another one at the same address
        self._children = list(model.links(skipself=True))
        self._param_names = [set(link._params) for link in (model, *self._children)]
        self._layout = Layout([], [])

    def is_current(self, model: chainer.Link) -> bool:
        """Tell whether `model` still has the same links with parameters of the same names."""
        children = list(model.links(skipself=True))
        return (
            len(children) == len(self._children)
            and all(map(operator.is_, children, self._children))
            and [link._params for link in (model, *children)] == self._param_names
        )

    def parameters(self) -> list[chainer.Parameter]:
        """Return the parameters as they are now, initialised or not."""
        return [attributes[name] for attributes, name in self._places]

    def gradients(self, zero_fill: bool) -> tuple[Layout, list[Array]]:
        """Return the gradients there are, and their layout.

        With `zero_fill`, initialised parameters without a gradient get zeros.
        """
        names, grads = self.names, self._gradients()
        if self._layout.is_of(names, grads):
            return self._layout, grads
        types = set(map(type, grads))
        if type(None) in types:
            if zero_fill:
                _fill_missing(self.parameters())
                grads = self._gradients()
            present = [grad is not None for grad in grads]
            names = list(itertools.compress(names, present))
            grads = list(itertools.compress(grads, present))
            types = set(map(type, grads))
        found: list[Array] = grads
        owners = _owners(found)
        if len(set(map(_address, owners))) < len(found):
            names, found = self._each_once(names, found)
        if not self._layout.describes(names, found, types):
            self._layout = Layout(names, found)
        for i in _not_to_be_written(found):
            found[i] = self._own_copy(names[i], found[i])
        return self._layout, found

    def _each_once(
        self, names: Sequence[str], grads: Sequence[Array]
    ) -> tuple[list[str], list[Array]]:
        """Return each number in memory once: twice in one window would mix old and new.

        A parameter under two names is left out the second time. A gradient that is also another
        parameter's, or overlaps with it, such as its transpose, becomes a copy.
        """
        once: dict[int, tuple[str, Array]] = {}  # by parameter
        for name, grad in zip(names, grads, strict=True):
            param = _address(self._parameter(name))
            if param not in once:
                others = [other for _, other in once.values() if _owner(other) is _owner(grad)]
                tangled = any(module_of(grad).may_share_memory(grad, other) for other in others)
                once[param] = name, self._own_copy(name, grad) if tangled else grad
        return [name for name, _ in once.values()], [grad for _, grad in once.values()]

    def _own_copy(self, name: str, grad: Array) -> Array:
        """Return a copy of a parameter's gradient, which is its gradient from now on."""
        self._parameter(name).grad = copied = grad.copy()
        return copied

    def _parameter(self, name: str) -> chainer.Parameter:
        attributes, attribute = self._place_of[name]
        return attributes[attribute]

    def _gradients(self) -> list[Array | None]:
        # not .grad: its checks take longer than all of the rest, and ChainerX is no concern here
        return [attributes[name]._grad for attributes, name in self._places]


def exchanged(dtype: np.dtype[Any], grad_dtype: np.dtype[Any] | None) -> np.dtype[Any]:
    """Return the dtype in which gradients travel; complex ones stay complex.

    >>> exchanged(np.dtype('f8'), np.dtype('f2')), exchanged(np.dtype('c16'), np.dtype('f2'))
    (dtype('float16'), dtype('complex64'))
    """
    if grad_dtype is None or dtype.kind != 'c':
        return grad_dtype or dtype
    return np.result_type(np.complex64, grad_dtype if grad_dtype.kind == 'f' else np.float32)


def is_whole(dtype: np.dtype[Any]) -> bool:
    """Tell whether arrays of `dtype` hold integers or bools."""
    return dtype.kind in 'biu'


def _owner(x: Array) -> Array:
    """Return the array whose memory `x` is in."""
    return x if x.base is None else x.base


def _owners(arrays: list[Array]) -> list[Array]:
    """Return the arrays whose memory these are in: themselves, unless there are views."""
    views = set(map(type, map(_base, arrays))) - {type(None)}
    return list(map(_owner, arrays)) if views else arrays


def _not_to_be_written(arrays: Sequence[Array]) -> list[int]:
    """Return which arrays are read-only, or have one number in memory for many.

    Such as a gradient of `F.sum`, which is a view of a single number. CuPy has no read-only arrays.
    """
    return [
        i
        for i, x in enumerate(arrays)
        if (0 in x.strides and x.size > 1) or not getattr(x.flags, 'writeable', True)
    ]


def _fill_missing(params: Sequence[chainer.Parameter]) -> None:
    for param in params:
        if param.array is not None and param.grad is None and not is_whole(param.dtype):
            param.grad = param.xp.zeros_like(param.array)
