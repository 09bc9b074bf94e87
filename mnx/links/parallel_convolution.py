"""A convolution whose channels are split over the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import chainer.functions as F

from mnx.errors import ArgumentError, explain
from mnx.functions.node import Input, Variable, as_variable
from mnx.links.parallel import ParallelLink

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Pair = Any  # int or pair of int


class ParallelConvolution2D(ParallelLink):
    """``chainer.links.Convolution2D``, of whose filters each rank has a part.

    As `ParallelLinear`, with channels for units: pictures are whole, channels are split.

    Collective: all ranks make it, call it, run backward through it and save it.

    Parameters
    ----------
    in_channels : int or None
        None: found in the first batch.
    out_channels : int
    ksize : int or pair of int
    comm : Communicator
        Of no more ranks than there are channels to be split.
    partition : {'output', 'input'}
    gather_output : bool, optional
    input_is_split : bool
        As for `ParallelLinear`. Between two convolutions the channels may stay split through
        everything that treats them one by one: pooling, elementwise functions.
    stride, pad, dilate : int or pair of int
        As in Chainer.
    groups : int
        Only 1.
    nobias, initialW, initial_bias
        As for `ParallelLinear`.

    Attributes
    ----------
    W : SplitParameter
        (part of out_channels, in_channels, kh, kw), or (out_channels, part of in_channels, ...).
    b : SplitParameter, Parameter or None

    Raises
    ------
    ArgumentError
        As for `ParallelLinear`; fewer channels than ranks; more than one group (on all ranks).
    MismatchError
        As for `ParallelLinear`.

    Notes
    -----
    Moves activations only: for pictures of h x w that become h' x w', 'output' gathers
    ``B * out_channels * h' * w'`` numbers in forward and all-reduces ``B * in_channels * h * w`` in
    backward; 'input' all-reduces the former in forward and gathers the latter in backward.

    Examples
    --------
    >>> import numpy as np
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> conv = ParallelConvolution2D(3, 8, 3, comm, pad=1)
    >>> conv(np.zeros((5, 3, 6, 6), 'f')).shape
    (5, 8, 6, 6)
    """

    _shown = ('in_channels', 'out_channels', 'ksize', 'stride', 'pad')

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        ksize: Pair,
        comm: Communicator,
        partition: str = 'output',
        gather_output: bool | None = None,
        *,
        input_is_split: bool = False,
        stride: Pair = 1,
        pad: Pair = 0,
        dilate: Pair = 1,
        groups: int = 1,
        nobias: bool = False,
        initialW: Any = None,
        initial_bias: Any = None,
    ) -> None:
        super().__init__(comm, partition, gather_output, input_is_split)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.ksize, self.stride, self.pad = pair(ksize), pair(stride), pair(pad)
        self.dilate = pair(dilate)
        with comm.together('ParallelConvolution2D'):
            _check_groups(groups)
            if partition == 'output':
                self._check_channels(out_channels)
        self._add_params(out_channels, in_channels, nobias, initialW, initial_bias)

    def forward(self, x: Input) -> Variable:
        """Return the convolution of `x`, (B, channels, h, w), with the filters, plus bias."""
        return self._forward(as_variable(x, 'ParallelConvolution2D'))

    def _weight_shape(self, inputs: int) -> tuple[int, ...]:
        if self.partition == 'input':
            self._check_channels(inputs)
        self.in_channels = inputs
        return self.out_channels, inputs, *self.ksize

    def _apply(self, x: Variable, b: Variable | None) -> Variable:
        return F.convolution_2d(x, self.W, b, self.stride, self.pad, dilate=self.dilate)

    def _check_channels(self, channels: int) -> None:
        """All ranks raise: the number is the same on all."""
        comm = self.comm
        if channels < comm.size:
            raise ArgumentError(
                explain(
                    'ParallelConvolution2D',
                    f'there are fewer {self.partition} channels than ranks',
                    f'{comm.size} at least',
                    channels,
                    rank=comm.rank,
                    size=comm.size,
                    advice='Split the other partition, or take fewer ranks',
                )
            )


def pair(x: Pair) -> tuple[int, int]:
    """Return an int twice, a pair as it is.

    >>> pair(3), pair((1, 2))
    ((3, 3), (1, 2))
    """
    first, second = x if hasattr(x, '__getitem__') else (x, x)
    return first, second


def _check_groups(groups: int) -> None:
    if groups != 1:
        raise ArgumentError(
            f'ParallelConvolution2D: groups are independent of one another, expected 1 but got '
            f'{groups}. Leave this convolution as it is.'
        )
