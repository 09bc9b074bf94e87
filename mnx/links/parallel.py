"""What parallel links have in common: which part, what is communicated, how they are saved.

The weight of a link is split over the ranks; the batch is not, all ranks have the whole of it::

    partition 'output'  (column-parallel)        partition 'input'  (row-parallel)

      x ──►[ W0 ]──► y0 ─┐                         x0 ──►[ W0 │────► y0 ─┐
      x ──►[ W1 ]──► y1 ─┼─ join ──► y             x1 ──►│ W1 │────► y1 ─┼─ sum ──► y
      x ──►[ W2 ]──► y2 ─┘                         x2 ──►│ W2 ]────► y2 ─┘
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import chainer
import chainer.functions as F
from chainer import initializers

from mnx.errors import ArgumentError, MismatchError
from mnx.functions import replicated
from mnx.links.split_parameter import Part, PerParameter, SplitParameter, digest_of

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Variable = Any

OUTPUT_AXIS, INPUT_AXIS = 0, 1  # of a weight


class ParallelLink(chainer.Link, ABC):
    """A link whose weight W, of shape (outputs, inputs, ...), is split over the ranks.

    Making one is collective, and so are its first call, forward, backward and saving.
    A subclass says what is done with a part: `_apply`.
    """

    _shown: tuple[str, ...] = ()

    def __init__(
        self,
        comm: Communicator,
        partition: str,
        gather_output: bool | None,
        input_is_split: bool,
    ) -> None:
        super().__init__()
        self.comm = comm
        self.partition = partition
        with comm.together(type(self).__name__) as meeting:
            _check(type(self).__name__, partition, gather_output, input_is_split)
            meeting.bring(partition, gather_output, input_is_split)
        self.gather_output = gather_output is not False
        self.input_is_split = input_is_split
        self._has_compared = False

    def _add_params(
        self, outputs: int, inputs: int | None, nobias: bool, initialW: Any, initial_bias: Any
    ) -> None:
        """Make W and b; W gets its values now if the number of `inputs` is known."""
        by_output = self.partition == 'output'
        axis, length = (OUTPUT_AXIS, outputs) if by_output else (INPUT_AXIS, inputs)
        with self.init_scope():
            self.W = SplitParameter(initialW, Part(self.comm, axis, length))
            if inputs is not None:
                self._initialize(inputs)
            bias = 0 if initial_bias is None else initial_bias
            if nobias:
                self.b = None
            elif by_output:
                self.b = SplitParameter(bias, Part(self.comm, 0, outputs), (outputs,))
            else:
                self.b = chainer.Parameter(initializers._get_initializer(bias), (outputs,))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self.comm)] = self.comm  # the copy is over the same ranks
        copied = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def printable_specs(self) -> Iterator[tuple[str, Any]]:
        """What ``repr`` shows."""
        for name in (*self._shown, 'partition', 'gather_output', 'input_is_split'):
            yield name, getattr(self, name)

    def serialize(self, serializer: Any) -> None:
        """Save or load in the layout of the link that is not parallel.

        Saving is collective: all ranks do it (see `mnx.links.save_npz`). Loading is not.
        """
        super().serialize(PerParameter(serializer, self))

    @abstractmethod
    def _weight_shape(self, inputs: int) -> tuple[int, ...]:
        """Return the shape of the whole weight."""

    @abstractmethod
    def _apply(self, x: Variable, b: Variable | None) -> Variable:
        """Return this rank's part, or term, of the output; axis 1 of both: features."""

    def _forward(self, x: Variable) -> Variable:
        if not self.W.is_initialized:
            self._initialize(self._count_inputs(x))
        self._check_replicated(x)
        if self.partition == 'output':
            y = self._apply(replicated.spread(self.comm, x), self.b)
            return replicated.join(self.comm, y) if self.gather_output else y
        self._check_inputs(x)
        part = x if self.input_is_split else replicated.split(self.comm, x)
        y = replicated.total(self.comm, self._apply(part, None))
        return y if self.b is None else F.bias(y, self.b)

    def _check_inputs(self, x: Variable) -> None:
        """All ranks raise: cut in parts, a wrong number might fit on some of them."""
        if not self.input_is_split and x.shape[1] != self.W.part.length:
            raise ArgumentError(
                f'{type(self).__name__}: the input has another number of features, expected '
                f'{self.W.part.length} but got {x.shape[1]}. Give the link that size.'
            )

    def _initialize(self, inputs: int) -> None:
        self.W.initialize_whole(self._weight_shape(inputs))

    def _count_inputs(self, x: Variable) -> int:
        """Return the number of features of the whole input. Collective if it is split."""
        if not self.input_is_split:
            return int(x.shape[1])
        return sum(self.comm.allgather_obj(int(x.shape[1])))

    def _check_replicated(self, x: Variable) -> None:
        """Compare the input at the first call, or in debug mode at every one. Collective."""
        if self.input_is_split or (self._has_compared and not chainer.is_debug()):
            return
        self._has_compared = True
        digests = self.comm.allgather_obj(digest_of(x.array))
        if len(set(digests)) > 1:
            raise MismatchError(
                f'{type(self).__name__}: the ranks have different inputs, expected the same on '
                f'all but got the digests {digests}. Ranks that share one model need the same '
                'batch: do not scatter the data among them, shuffle and drop out with one seed.'
            )


def _check(call: str, partition: str, gather_output: bool | None, input_is_split: bool) -> None:
    if partition not in ('output', 'input'):
        raise ArgumentError(f"{call}: partition is 'output' or 'input', but got {partition!r}.")
    if partition == 'input' and gather_output is not None:
        raise ArgumentError(
            f"{call}: with partition 'input' every rank has the whole output, expected no "
            f'gather_output but got {gather_output}. Leave it out.'
        )
    if partition == 'output' and input_is_split:
        raise ArgumentError(
            f"{call}: with partition 'output' every rank needs the whole input, expected "
            "input_is_split=False but got True. Use partition='input', or gather the input."
        )
