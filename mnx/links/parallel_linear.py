"""A linear layer whose weight is split over the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import chainer.functions as F

from mnx.errors import ArgumentError
from mnx.functions.node import Input, Variable, as_variable
from mnx.links.parallel import ParallelLink

if TYPE_CHECKING:
    from mnx.communicators import Communicator


class ParallelLinear(ParallelLink):
    """``chainer.links.Linear``, of whose weight each rank has a part.

    All ranks have the whole batch and compute one loss together. Values and gradients are those
    of one process (see `mnx.functions.replicated` for what that means).

    Collective: all ranks make it, call it, run backward through it and save it.

    Parameters
    ----------
    in_size : int or None
        Number of inputs; None: found in the first batch.
    out_size : int
    comm : Communicator
        The ranks that share the weight. Any sizes: rank r of n has the rows (or columns) from
        ``size * r // n`` to ``size * (r + 1) // n``.
    partition : {'output', 'input'}
        'output': each rank computes a part of the outputs, from the whole input. 'input': each
        rank computes a term of all outputs, from a part of the inputs.
    gather_output : bool, optional
        With 'output' only. True (the default): every rank returns the whole output. False: its
        part.
    input_is_split : bool
        With 'input' only: each rank is given its part of the input, as a link with
        ``gather_output=False`` returns it, and elementwise functions of that.
    nobias : bool
    initialW : initializer or array, optional
        Of the *whole* weight, (out_size, in_size). Every rank draws the whole and keeps its part,
        so that the values are those of one process with the same seed.
    initial_bias : initializer or array, optional

    Attributes
    ----------
    W : SplitParameter
        (part of out_size, in_size), or (out_size, part of in_size).
    b : SplitParameter, Parameter or None
        (part of out_size,), or with 'input' (out_size,) on every rank.

    Raises
    ------
    ArgumentError
        Arguments that do not go together (on all ranks).
    MismatchError
        The ranks drew different values, or were given different batches; the latter is looked at
        in the first call, in Chainer's debug mode in every one (on all ranks).

    Notes
    -----
    For a batch of B, forward: 'output' gathers ``out_size * B`` numbers (none without
    ``gather_output``), 'input' all-reduces as many. Backward: 'output' all-reduces
    ``in_size * B`` numbers, 'input' gathers as many (none if the input is split). Nothing in
    backward if `x` needs no gradient, as in a first layer; never anything of the weight's size.

    References
    ----------
    M. Shoeybi et al., Megatron-LM: Training Multi-Billion Parameter Language Models Using Model
    Parallelism, arXiv:1909.08053 (a column-parallel layer before a row-parallel one).

    Examples
    --------
    >>> import numpy as np
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> l1 = ParallelLinear(3, 8, comm, partition='output', gather_output=False)
    >>> l2 = ParallelLinear(8, 2, comm, partition='input', input_is_split=True)
    >>> l2(F.relu(l1(np.zeros((5, 3), 'f')))).shape
    (5, 2)
    """

    _shown = ('in_size', 'out_size')

    def __init__(
        self,
        in_size: int | None,
        out_size: int,
        comm: Communicator,
        partition: str = 'output',
        gather_output: bool | None = None,
        *,
        input_is_split: bool = False,
        nobias: bool = False,
        initialW: Any = None,
        initial_bias: Any = None,
    ) -> None:
        super().__init__(comm, partition, gather_output, input_is_split)
        self.in_size, self.out_size = in_size, out_size
        self._add_params(out_size, in_size, nobias, initialW, initial_bias)

    def forward(self, x: Input, n_batch_axes: int = 1) -> Variable:
        """Return ``x W^T + b``.

        Parameters
        ----------
        x : Variable or array
            Batch axes, then axes that count as one; the same on all ranks, or if
            ``input_is_split`` this rank's part.
        n_batch_axes : int

        Raises
        ------
        ArgumentError
            The input has less than two axes, or less than `n_batch_axes` (on all ranks).
        """
        x = as_variable(x, 'ParallelLinear')
        if x.ndim < 2 or not 1 <= n_batch_axes <= x.ndim:
            with self.comm._meet('ParallelLinear'):  # the ranks that have begun raise, too
                raise ArgumentError(
                    'ParallelLinear: needs axes of a batch before that of the features, expected '
                    f'an input of 2 at least but got shape {x.shape} and '
                    f'n_batch_axes={n_batch_axes}. Reshape it.'
                )
        batch = x.shape[:n_batch_axes]
        if x.ndim != 2 or n_batch_axes != 1:
            x = _as_matrix(x, n_batch_axes)
        y = self._forward(x)
        return y if n_batch_axes == 1 else F.reshape(y, (*batch, y.shape[1]))

    def _weight_shape(self, inputs: int) -> tuple[int, ...]:
        self.in_size = inputs
        return self.out_size, inputs

    def _apply(self, x: Variable, b: Variable | None) -> Variable:
        return F.linear(x, self.W, b)


def _as_matrix(x: Variable, n_batch_axes: int) -> Variable:
    rows = columns = 1
    for length in x.shape[:n_batch_axes]:
        rows *= length
    for length in x.shape[n_batch_axes:]:
        columns *= length
    return F.reshape(x, (rows, columns))
