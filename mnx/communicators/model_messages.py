"""What data-parallel training asks of a communicator: equal parameters, averaged gradients."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex
from weakref import WeakKeyDictionary

import chainer
import numpy as np

from mnx.arrays import Array
from mnx.communicators import narrow
from mnx.communicators.endpoint import Endpoint
from mnx.communicators.parameters import Layout, ParameterTable
from mnx.errors import ArgumentError, DtypeError
from mnx.health.meeting import Meeting
from mnx.packing import Packer, divide, multiply
from mnx.transports.base import Pending


@dataclass(frozen=True)
class Scaling:
    """A mean over ranks: each rank's part times its `factor`, the sum divided by `divisor`.

    `weighted`: some rank's factor is not 1.
    """

    factor: float
    divisor: float
    weighted: bool = False

    def before(self, part: Array) -> None:
        """Scale what this rank contributes, in place."""
        multiply(part, self.factor)

    def after(self, total: Array) -> None:
        """Scale the sum, in place."""
        divide(total, self.divisor)


class ModelMessages(Endpoint):
    """The model methods of a communicator.

    A subclass says which arrays are packed (`pack_below`) and how a buffer is summed
    (`sum_buffer`). Or it takes the arrays as they are: `mean_arrays`.
    """

    pack_below: float = float('inf')
    keeps_equal = True  # models that were equal before an update, after it
    sums_half = False  # on GPUs: 16-bit floats travel as such where `allreduce_grad_dtype` says so

    @functools.cached_property
    def _packer(self) -> Packer:
        return Packer()

    @functools.cached_property
    def _tables(self) -> WeakKeyDictionary[chainer.Link, ParameterTable]:
        return WeakKeyDictionary()

    def sum_buffer(self, buffer: Array) -> None:
        """Replace a flat buffer by its sum over all ranks. Collective."""
        self._arrays.all_reduce(buffer)

    def start_sum(self, buffer: Array) -> Pending:
        """Start `sum_buffer`; the buffer is not to be touched until it has ended. Collective."""
        return self._arrays.start_all_reduce(buffer)

    def multi_node_mean_grad(
        self,
        model: chainer.Link,
        zero_fill: bool = False,
        *,
        weight: float | None = None,
        fact: str = '',
    ) -> None:
        """Replace every gradient of `model` by its mean over the ranks, in place.

        Collective: all ranks call it with the same model.

        Parameters
        ----------
        model : chainer.Link
        zero_fill : bool
            Count a missing gradient as zeros, so that ranks whose graphs used different
            parameters still agree. Otherwise parameters without a gradient are left out, and
            must be the same ones on all ranks. Uninitialised parameters are always left out.
        weight : float, optional
            This rank's share in the mean, such as its number of samples. Given by all ranks or
            by none; none means equal shares.
        fact : str
            Anything else that must be the same on all ranks, such as the learning rate.

        Raises
        ------
        MismatchError
            The ranks' gradients differ in name, shape or dtype (on all ranks).
        DtypeError
            `model` is no link, or gradients are integers or bools (on all ranks).
        ArgumentError
            A negative weight, or all weights zero; in debug mode, a non-finite result.

        Notes
        -----
        float16 and bfloat16 gradients are summed in float32. Sums first, then divides. An
        ``allreduce_grad_dtype`` of 16 bits halves the bytes between nodes: every number is
        rounded once on its way out and once on its way back, and summed in float32. Inside a node
        it changes nothing.
        """
        layout, grads, scaling = self._agree_on_gradients(
            'multi_node_mean_grad', model, zero_fill, weight, fact
        )
        if self.size > 1 or self._config.allreduce_grad_dtype is not None:
            self.mean_arrays(grads, layout, scaling)
        if chainer.is_debug():
            check_finite(layout.names, grads)

    def _agree_on_gradients(
        self, call: str, model: chainer.Link, zero_fill: bool, weight: float | None, fact: str
    ) -> tuple[Layout, list[Array], Scaling]:
        """Return the gradients there are, the same ones on all ranks, and their shares."""
        with self._meet(call) as meeting:
            layout, grads = self._table(call, model).gradients(zero_fill)
            wire = self._config.allreduce_grad_dtype
            given = f'weighted={weight is not None}', f'allreduce_grad_dtype={wire}'
            _bring_layout(meeting, layout, fact, *given)
            if layout.whole_numbers:
                raise DtypeError(
                    f'{call}: gradients are averaged, expected floating-point or complex numbers '
                    f'but got integers or bools for {", ".join(layout.whole_numbers)}. '
                    'Leave them out (param.grad = None), or use allreduce.'
                )
            if weight is not None and not 0 <= weight < float('inf'):
                raise ArgumentError(
                    f'{call}: a weight is finite and not negative, but got {weight}.'
                )
        return layout, grads, self._scaling(weight)

    def allreduce_grad(self, model: chainer.Link, zero_fill: bool = False) -> None:
        """As `multi_node_mean_grad`, its old name."""
        warnings.warn(
            'allreduce_grad is deprecated; use multi_node_mean_grad.',
            DeprecationWarning,
            stacklevel=2,
        )
        self.multi_node_mean_grad(model, zero_fill)

    def bcast_data(self, model: chainer.Link) -> None:
        """Overwrite the parameters of `model` by rank 0's, bit by bit.

        Collective: all ranks call it with the same model. Uninitialised parameters are left
        out. Persistent values and an optimizer's state are `create_multi_node_optimizer`'s care.
        """
        params = sorted(model.namedparams(include_uninit=False), key=operator.itemgetter(0))
        self.bcast_into([(name, p.array) for name, p in params], call='bcast_data')
        for _, param in params:
            if param.update_rule is not None:  # its copy in float32 would take the values back
                param.update_rule._fp32_param = None

    broadcast_data = bcast_data

    def bcast_into(
        self,
        named: Sequence[tuple[str, Array]],
        root: SupportsIndex = 0,
        *,
        call: str = 'bcast_into',
    ) -> None:
        """Overwrite arrays on all ranks by the root's, in place.

        Collective: all ranks give the same names, shapes and dtypes, in the same order.
        """
        arrays = [array for _, array in named]
        with self._meet(call) as meeting:
            root = self._rank(call, 'root', root)
            layout = Layout([name for name, _ in named], arrays)
            _bring_layout(meeting, layout, f'root={root}')
        for bucket in layout.copy_plan(self.pack_below):
            buffer = self._packer.pack(bucket, arrays)
            self._arrays.broadcast(buffer.view(np.uint8), root)
            self._packer.unpack(bucket, buffer, arrays)

    def narrow_wire(self) -> np.dtype[Any] | None:
        """Return the dtype of 16 bits between nodes, if one was asked for and there are nodes."""
        wire = self._config.allreduce_grad_dtype
        return wire if wire is not None and wire.itemsize == 2 and self.inter_size > 1 else None

    def _table(self, call: str, model: chainer.Link) -> ParameterTable:
        if not isinstance(model, chainer.Link):
            raise DtypeError(f'{call}: expected a chainer.Link but got {type(model).__name__}.')
        table = self._tables.get(model)
        if table is None or not table.is_current(model):
            table = self._tables[model] = ParameterTable(model)
        return table

    def mean_arrays(self, arrays: list[Array], layout: Layout, scaling: Scaling) -> None:
        """Replace arrays by their mean over all ranks, in place. Collective."""
        with np.errstate(all='ignore'):  # as MPI: an error would be one rank's alone
            self._mean_by_buckets(arrays, layout, scaling)

    def _mean_by_buckets(self, arrays: list[Array], layout: Layout, scaling: Scaling) -> None:
        wire = self._config.allreduce_grad_dtype
        between_nodes = self.narrow_wire() if layout.place == 'cpu' else None
        as_it_is = self.sums_half and layout.place == 'gpu'
        batched = self._config.batched_copy
        for bucket in layout.sum_plan(wire, self.pack_below, as_it_is):
            buffer = self._packer.pack(bucket, arrays, scaling.factor, batched=batched)
            divisor = scaling.divisor
            if between_nodes is None:
                self.sum_buffer(buffer)
            else:
                narrow.all_reduce(self._arrays, buffer, between_nodes, scaling.after)
                divisor = 1.0
            self._packer.unpack(bucket, buffer, arrays, divisor, batched=batched)

    @functools.cached_property
    def _equal_shares(self) -> Scaling:
        return Scaling(1.0, self.size)

    def _scaling(self, weight: float | None) -> Scaling:
        if weight is None:
            return self._equal_shares
        weights = np.empty(self.size, np.float64)
        self._control.all_gather(np.array([weight], np.float64), weights, [1] * self.size)
        if (weights == weights[0]).all() and weight > 0:
            return self._equal_shares
        total = float(weights.sum())
        if total == 0:
            raise ArgumentError(
                'multi_node_mean_grad: all ranks have weight 0, so there is no mean. '
                'Some rank must have samples in every update.'
            )
        largest = float(weights.max())  # factors up to 1, or large gradients could overflow
        return Scaling(weight / largest, total / largest, weighted=True)


def _bring_layout(meeting: Meeting, layout: Layout, *facts: str) -> None:
    meeting.bring(*facts, layout.brief)
    meeting.detail(layout.describe)


def check_finite(names: Sequence[str], grads: Sequence[Array]) -> None:
    """Raise if a mean is not finite; every rank does, since it is the same everywhere."""
    pairs = zip(names, grads, strict=True)
    bad = [name for name, grad in pairs if not bool((abs(grad) < float('inf')).all())]
    if bad:
        raise ArgumentError(
            f'multi_node_mean_grad: gradients diverged after allreduce: {", ".join(bad)}. '
            'Some rank had a NaN or an infinity there before.'
        )
