"""A parameter of which each rank has a part, and which is saved and loaded as a whole.

Files hold what plain Chainer would write: the whole of each parameter and of each array of its
optimizer's state. So they load in plain Chainer, and on any number of ranks.

Loading needs no communication: each rank reads the whole and keeps its part. Saving does, and in
an order that the ranks do not share, since Chainer keeps a Chain's children in a set. So each
exchange begins with the ranks' *wishes*, and every rank sends each other one what it asked for::

    rank 0 saves l2/W    wishes:  l2/W  l1/W     sends its parts of  l2/W  l1/W
    rank 1 saves l1/W             l2/W  l1/W                         l2/W  l1/W
"""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import chainer
import numpy as np
from chainer import initializers
from chainer.backends import cuda
from chainer.serializer import Deserializer, Serializer

from mnx.arrays import Array, is_array, module_of
from mnx.errors import ArgumentError, MismatchError
from mnx.functions.replicated import join_parts, part_bounds, take_part

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Shape: TypeAlias = 'tuple[int, ...]'
Number: TypeAlias = 'tuple[int, ...]'  # of a parameter; the third copy of (5,) is (5, 3)
Wish: TypeAlias = 'tuple[Number, str | None]'  # a parameter; None, or a key of its state

SAVING = 'save a model of parallel links (all ranks must, see mnx.links.save_npz)'


class Part:
    """Which part of a whole array this rank has.

    Parameters
    ----------
    comm : Communicator
    axis : int
        Along which the whole is split.
    length : int or None
        Of the whole along `axis`; None if it is not known yet.
    """

    def __init__(self, comm: Communicator, axis: int, length: int | None) -> None:
        self.comm = comm
        self.axis = axis
        self.length = length

    def cut(self, whole: Array) -> Array:
        """Return this rank's part, contiguous."""
        return take_part(whole, self.axis, self.comm.rank, self.comm.size)

    def shape(self, whole: Shape) -> Shape:
        """Return the shape of this rank's part."""
        start, end = part_bounds(whole[self.axis], self.comm.rank, self.comm.size)
        return (*whole[: self.axis], end - start, *whole[self.axis + 1 :])

    def whole_shape(self, part: Shape) -> Shape:
        """Return the shape of the whole."""
        assert self.length is not None
        return (*part[: self.axis], self.length, *part[self.axis + 1 :])


class DrawWhole(chainer.Initializer):
    """Fills a part with what another initializer draws for the whole.

    So the values are those of one process with the same seed, and the random state of each rank
    goes on as there. The whole lives as long as the drawing takes.

    Attributes
    ----------
    digest : int or None
        Of the last whole that was drawn.
    """

    def __init__(self, actual: Any, part: Part) -> None:
        super().__init__(getattr(actual, 'dtype', None))
        self.actual = actual
        self.part = part
        self.digest: int | None = None

    def __call__(self, array: Array) -> None:
        """Fill `array` in place."""
        whole = module_of(array).empty(self.part.whole_shape(array.shape), array.dtype)
        self.actual(whole)
        array[...] = self.part.cut(whole)
        self.digest = digest_of(whole)


class SplitParameter(chainer.Parameter):
    """The part of a parameter that this rank has.

    Parameters
    ----------
    initializer : initializer of Chainer, scalar or array
        Of the whole.
    part : Part
    whole : tuple of int or None
        The shape of the whole; None if it is not known yet.
    """

    def __init__(self, initializer: Any, part: Part, whole: Shape | None = None) -> None:
        self.part = part
        draw = DrawWhole(initializers._get_initializer(initializer), part)
        super().__init__(draw)
        self._enter((_count(part.comm),))
        if whole is not None:
            self.initialize_whole(whole)

    def initialize_whole(self, whole: Shape) -> None:
        """Draw the values. Collective: the ranks compare what they have drawn.

        Raises
        ------
        ArgumentError
            The ranks have drawn different numbers (on all ranks).
        """
        self.part.length = whole[self.part.axis]
        self.initialize(self.part.shape(whole))
        check_same_draw(self.part.comm, self.initializer.digest)

    def whole_of(self, key: str | None = None) -> Array:
        """Return the whole of the values, or of one array of the optimizer's state, on the host.

        Collective: all ranks call it, each for the one that it wants.
        """
        return exchange(self.part.comm, (self.number, key))

    @property
    def place(self) -> str:
        """Which part this is, in words: ranks that average gradients must have the same one."""
        return f', part {self.part.comm.rank} of {self.part.comm.size}'

    def local(self, key: str | None) -> Array:
        """Return this rank's part, on the host."""
        return cuda.to_cpu(self.array if key is None else self.update_rule.state[key])

    @property
    def update_rule(self) -> Any:
        """Chainer's update rule, whose arrays are saved and loaded as a whole, too."""
        return self.__dict__.get('_update_rule')

    @update_rule.setter
    def update_rule(self, rule: Any) -> None:
        if rule is not None:
            rule.serialize = functools.partial(_serialize_rule, rule, self)
        self.__dict__['_update_rule'] = rule

    def _enter(self, number: Number) -> None:
        """Take a number under which the other ranks have their parts."""
        self.number = number
        self._n_copies = 0
        _REGISTERED.setdefault(self.part.comm, WeakValueDictionary())[number] = self

    def _number_of_copy(self) -> Number:
        # not the next of all numbers: the ranks copy a Chain's children in different orders
        self._n_copies += 1
        return (*self.number, self._n_copies)

    def __copy__(self) -> SplitParameter:
        copied: SplitParameter = self._copy_to(SplitParameter.__new__(SplitParameter))
        copied._enter(self._number_of_copy())
        return copied

    def __deepcopy__(self, memo: Any) -> SplitParameter:
        copied = copy.copy(self)
        copied.part = Part(self.part.comm, self.part.axis, self.part.length)
        copied.initializer = DrawWhole(self.initializer.actual, copied.part)
        copied.update_rule = None
        copied._data = [None if x is None else x.copy() for x in self._data]
        copied._grad = None if self._grad is None else self._grad.copy()
        return copied

    def __reduce__(self) -> Any:
        raise ArgumentError(
            'pickle: a parameter of a parallel link is split over processes that are joined by a '
            'communicator, which cannot be pickled. Save it with mnx.links.save_npz.'
        )


class SaveWhole(Serializer):
    """Hands the whole to another serializer, where a part is to be saved."""

    def __init__(self, actual: Serializer, param: SplitParameter, is_state: bool) -> None:
        self._actual, self._param, self._is_state = actual, param, is_state

    def __getitem__(self, key: str) -> Serializer:
        return self._actual[key]

    def __call__(self, key: str, value: Any) -> Any:
        """Save; collective if `value` is split. Return `value`."""
        if is_array(value) and value.shape == self._param.shape:
            self._actual(key, self._param.whole_of(key if self._is_state else None))
        else:
            self._actual(key, value)
        return value


class LoadPart(Deserializer):
    """Takes this rank's part of what another deserializer loads."""

    def __init__(self, actual: Deserializer, param: SplitParameter) -> None:
        self._actual, self._param = actual, param

    def __getitem__(self, key: str) -> Deserializer:
        return self._actual[key]

    def __call__(self, key: str, value: Any) -> Any:
        """Load into `value`, if it is an array; return what was loaded."""
        if is_array(value) and value.shape == self._param.shape:
            return self._into(key, value)
        found = self._actual(key, value)
        return self._part(found) if value is None else found

    def _into(self, key: str, value: Array) -> Array:
        part = self._param.part
        expected = part.whole_shape(value.shape)
        rehearse = getattr(self._actual, 'check_array', None)
        if rehearse is not None:  # a rehearsal of mnx.training: nothing is loaded
            rehearse(key, expected, value.dtype)
            return value
        whole = self._actual(key, None)
        if whole is None:  # not in the file: the value stays
            return value
        if tuple(whole.shape) != expected:
            raise ArgumentError(
                f'load: {key} does not fit, expected the whole, of shape {expected}, but got '
                f'{tuple(whole.shape)}. Build the same model as when it was saved.'
            )
        value[...] = module_of(value).asarray(part.cut(np.asarray(whole)))
        return value

    def _part(self, found: Any) -> Any:
        part = self._param.part
        if not hasattr(found, 'ndim') or found.ndim <= part.axis:
            return found
        whole = np.asarray(found)
        length = whole.shape[part.axis]
        if self._param.is_initialized and length != part.length:
            raise ArgumentError(
                f'load: a state of the optimizer does not fit, expected {part.length} along axis '
                f'{part.axis} of the whole, but got {length}. Build the same model as when it was '
                'saved.'
            )
        part.length = length
        return part.cut(whole)


class PerParameter:
    """A serializer for a link, by which its split parameters are saved and loaded whole."""

    def __init__(self, actual: Any, link: chainer.Link) -> None:
        self._actual, self._link = actual, link

    def __call__(self, key: str, value: Any) -> Any:
        param = getattr(self._link, key, None)
        if isinstance(param, SplitParameter):
            return _around(self._actual, param, is_state=False)(key, value)
        return self._actual(key, value)


def exchange(comm: Communicator, wish: Wish) -> Array:
    """Return the whole that this rank wishes for; give the others my parts of what they wish for.

    Collective: all ranks call it, as often as each other.
    """
    with comm.together(SAVING):
        pass  # a clear error, if others do something else
    wishes = comm.allgather_obj(wish)
    registered = _REGISTERED[comm]
    with comm.together(SAVING):
        parts = [registered[number].local(key) for number, key in wishes]
    return join_parts(comm.alltoall(parts), registered[wish[0]].part.axis)


def check_same_draw(comm: Communicator, digest: int | None) -> None:
    """Raise on all ranks if they have drawn different initial values. Collective."""
    digests = comm.allgather_obj(digest)
    if len(set(digests)) > 1:
        raise MismatchError(
            f'ParallelLink: the ranks drew different initial values, expected the same whole on '
            f'all but got the digests {digests}. Ranks that share one model need equal random '
            'numbers: call np.random.seed (on GPUs cupy.random.seed) with one seed on all ranks.'
        )


def digest_of(array: Array) -> int:
    """Return a checksum of the values of `array`."""
    values = np.ascontiguousarray(cuda.to_cpu(array))
    return zlib.crc32(values.reshape(-1).view(np.uint8).data, zlib.crc32(str(array.shape).encode()))


# The parameters of each communicator, in the order in which all ranks make them.
_REGISTERED: WeakKeyDictionary[Communicator, WeakValueDictionary[Number, SplitParameter]]
_REGISTERED = WeakKeyDictionary()
_COUNTS: WeakKeyDictionary[Communicator, int] = WeakKeyDictionary()


def _count(comm: Communicator) -> int:
    _COUNTS[comm] = _COUNTS.get(comm, 0) + 1
    return _COUNTS[comm]


def _around(serializer: Any, param: SplitParameter, *, is_state: bool) -> Callable[..., Any]:
    if isinstance(serializer, Serializer):
        return SaveWhole(serializer, param, is_state)
    return LoadPart(serializer, param)


def _serialize_rule(rule: Any, param: SplitParameter, serializer: Any) -> None:
    type(rule).serialize(rule, _around(serializer, param, is_state=True))
