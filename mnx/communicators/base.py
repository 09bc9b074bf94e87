"""The communicator that users see."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np

from mnx.communicators.endpoint import Config, Resources
from mnx.communicators.gradient_messages import GradientMessages
from mnx.communicators.object_messages import ObjectMessages
from mnx.errors import ArgumentError, DtypeError
from mnx.health import farewell
from mnx.transports.base import Channels
from mnx.transports.local import LocalChannels


class Communicator(GradientMessages, ObjectMessages):
    """A group of ranks that train together.

    Made by `mnx.create_communicator`. Use it as a context manager, or call `finalize`, to free
    what it holds; at the end of the program that happens by itself.

    One subclass per algorithm, which answers one question: how a flat buffer of gradients is
    summed over the ranks (`sum_buffer`), and what is packed into such a buffer before.
    """

    name = 'base'
    needs_nccl = False  # cannot be made without
    carries_by_nccl = False  # all arrays on GPUs
    reason = 'there is one process'

    def __init__(self, channels: Channels | None = None, config: Config | None = None) -> None:
        super().__init__(channels or LocalChannels(), config)
        self._splits = 0
        self._unused: set[int] = set()
        self._split_resources: dict[int, Resources] = {}

    def describe(self) -> str:
        """Return one line: which communicator this is, why, and where its ranks are.

        >>> import mnx
        >>> mnx.create_communicator('local').describe()
        'local (there is one process): 1 rank on 1 node'
        """
        ranks = f'{self.size} rank{"s" * (self.size > 1)}'
        nodes = f'{self.inter_size} node{"s" * (self.inter_size > 1)}'
        return f'{self.name} ({self.reason}): {ranks} on {nodes}'

    def set_config(self, name: str, value: Any = True) -> None:
        """Set 'allreduce_grad_dtype' (None or a float dtype) or 'batched_copy' (bool)."""
        if name == 'batched_copy':
            self._config.batched_copy = bool(value)
        elif name == 'allreduce_grad_dtype':
            self._config.allreduce_grad_dtype = float_dtype(value)
        else:
            raise ArgumentError(
                f'set_config: unknown name {name!r}. '
                "Known are 'allreduce_grad_dtype' and 'batched_copy'."
            )

    def get_config(self, name: str | None = None) -> Any:
        """Return one configuration value, or a dict of all. An unknown name is a `KeyError`."""
        values = vars(self._config).copy()
        return values if name is None else values[name]

    def split(self, color: SupportsIndex | None, key: SupportsIndex) -> Communicator | None:
        """Make communicators of the same kind and configuration among parts of the ranks.

        Collective: all ranks call it.

        Parameters
        ----------
        color : int or None
            Ranks with the same color, which is not negative, get a communicator of their own;
            None (or ``MPI.UNDEFINED``) gets none.
        key : int
            Orders the ranks of the new communicator; ties are broken by the old rank.

        Notes
        -----
        An MPI library has some 2,000 communicators at most. A communicator made by `split` that
        no rank refers to any more is freed at the next `split`; its own `finalize`, or that of
        the one it was split from, frees it at once.
        """
        with self.together('split'):
            color, key = _color(color), _key(key)
        self._free_unused()
        channels = self._channels.split(color, key)
        self._splits += 1
        if channels is None:
            self._unused.add(self._splits)
            self._split_resources[self._splits] = Resources([])
            return None
        child = self._remade(channels)
        child.reason = f'as the one it was split from, {self.reason}'
        child._own(farewell.owe(child.meetings))
        self._split_resources[self._splits] = child._resources
        weakref.finalize(child, self._unused.add, self._splits)
        return child

    def group(self, ranks: Sequence[SupportsIndex]) -> Communicator | None:
        """Make a communicator of the same kind among some of the ranks, in the order given.

        Collective: all ranks call it, with the same `ranks`; those left out get None.

        >>> import mnx
        >>> mnx.create_communicator('local').group([0]).size
        1
        """
        with self.together('group') as meeting:
            members = [self._rank('group', 'a member', rank) for rank in _sequence(ranks)]
            meeting.bring(members)
            if len(set(members)) < len(members):
                raise ArgumentError(f'group: each rank once, but got {members}.')
        inside = self.rank in members
        return self.split(0 if inside else None, members.index(self.rank) if inside else 0)

    def _remade(self, channels: Channels) -> Communicator:
        """Return a communicator of this kind and configuration over other channels."""
        return type(self)(channels, Config(**vars(self._config)))

    def _free_unused(self) -> None:
        """Free the splits that no rank refers to any more; the ranks find out which together."""
        numbers = sorted(self._split_resources)
        votes = np.array([number in self._unused for number in numbers], np.uint8)
        self._control.all_reduce(votes, 'min')
        for number, vote in zip(numbers, votes, strict=True):
            if vote:
                self._unused.discard(number)
                self._split_resources.pop(number).close()

    def finalize(self) -> None:
        """Free what this communicator holds, and what was split from it; then it is of no use.

        Collective: all ranks call it, in the same order as other collectives. A second call
        does nothing.
        """
        if not self._resources.closed:
            if not farewell.say_to(self.meetings):
                self._resources.closed = True
                return
            for number in sorted(self._split_resources):
                self._split_resources.pop(number).close()
            self._resources.close()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # a rank that fails cannot wait for the others here
            self.finalize()

    def __copy__(self) -> Communicator:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Communicator:
        """Return itself: copies of a link that communicates share its communicator."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        if self.mpi_comm is not None:
            raise DtypeError(
                'pickle: a communicator is the end of this process in a job, expected something '
                'that another process can have. Leave it out of what is saved or sent, as a data '
                'set for worker processes; parameters are saved by chainer.serializers.'
            )
        return self.__dict__

    def __repr__(self) -> str:
        return f'<mnx {self.name} communicator, rank {self.rank} of {self.size}>'


_UNDEFINED = -32766  # MPI.UNDEFINED in MPICH and Open MPI


def _color(value: SupportsIndex | None) -> int | None:
    color = None if value is None else _integer('color', value)
    if color is None or color == _UNDEFINED:
        return None
    if not 0 <= color < 2**31:
        raise ArgumentError(f'split: a color is None or 0 to {2**31 - 1}, but got {color}.')
    return color


def _integer(name: str, value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise ArgumentError(f'split: a {name} is an int, but got {value!r}. Convert it.') from error


def _sequence(ranks: Sequence[SupportsIndex]) -> Sequence[SupportsIndex]:
    try:
        iter(ranks)
    except TypeError:
        raise ArgumentError(f'group: needs a list of ranks but got {ranks!r}.') from None
    return ranks


def _key(value: SupportsIndex) -> int:
    key = _integer('key', value)
    if not -(2**31) <= key < 2**31:
        raise ArgumentError(f'split: a key is {-(2**31)} to {2**31 - 1}, but got {key}.')
    return key


def float_dtype(value: Any) -> np.dtype[Any] | None:
    """Return `value` as the dtype of a gradient exchange: None, or a floating-point dtype."""
    if value is None:
        return None
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except TypeError as error:
        raise ArgumentError(
            'allreduce_grad_dtype is the name of no dtype, expected a floating-point dtype or '
            f"None but got {value!r}. Give 'float16', for example."
        ) from error
    if dtype.kind != 'f' and dtype.name != 'bfloat16':
        raise ArgumentError(
            f'allreduce_grad_dtype must be a floating-point dtype or None, but got {value!r}.'
        )
    return dtype
