"""Batch normalisation over the batches of all ranks.

Two small all-reduces in forward, one in backward::

    1   count and sum of x, in float64         ──►  n, c = mean over all ranks
    2   sum of (x - c), sum of (x - c)**2      ──►  variance; differentiable

The second one is of numbers around zero, so the variance is not the difference of two large ones.

References: Ioffe and Szegedy, 2015, arXiv:1502.03167; Chan, Golub and LeVeque, 1983 (shifted data).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from mnx.arrays import Array, module_of
from mnx.errors import ArgumentError, DtypeError
from mnx.functions.linear import Arrays
from mnx.functions.node import Communication, Input, Route, Variable, as_variable

if TYPE_CHECKING:
    from mnx.communicators import Communicator


_CALL = 'MultiNodeBatchNormalization'


class Total(Communication):
    """y_r = sum over s of x_s, where the objective is the sum of the ranks' losses by weight."""

    call = 'MultiNodeBatchNormalization'

    def communicate(self, xs: Arrays) -> Arrays:
        return (self.comm.allreduce(xs[0]),)


class WeightedTotal(Communication):
    """y_r = sum over s of w_s x_s, divided by w_r: the gradients of rank s's loss count w_s."""

    call = 'MultiNodeBatchNormalization'

    def communicate(self, xs: Arrays) -> Arrays:
        y = self.comm.allreduce(xs[0] * xs[0].dtype.type(self.route.weight))
        y /= self.route.weight or 1  # without weight this rank has no samples to differentiate
        return (y,)


Total.adjoint, WeightedTotal.adjoint = WeightedTotal, Total


class MultiNodeBatchNormalization(L.BatchNormalization):
    """Batch normalisation with the mean and variance of all ranks' batches together.

    In training mode equal to `chainer.links.BatchNormalization` on the concatenation of the local
    batches, whose sizes may differ and be zero: values, derivatives of any order, and running
    statistics, which are the same bits on all ranks. In test mode nothing is communicated.

    Collective: in training mode all ranks call it, and all call backward.

    Parameters
    ----------
    size : int, tuple of int, or None
        Shape of the parameters: the channels. None: taken from the first input, by `axis`.
    comm : Communicator
    decay, eps, dtype, use_gamma, use_beta, initial_gamma, initial_beta
        As for `chainer.links.BatchNormalization`.
    communication_backend : {'auto', 'mpi', 'nccl'}
        Kept for ChainerMN's sake. The communicator decides.
    axis : int, tuple of int, or None
        The axes over which the mean is taken. Default: all but the second.
    losses : {'mean', 'sum'}
        What the ranks call backward on, which makes a difference for local batches of unequal
        size: the 'mean' over their own samples, as the multi-node optimizer weighs them by their
        number; or parts of one 'sum'.

    Raises
    ------
    ArgumentError
        A wrong `communication_backend` or `losses`; in training mode, no rank has any samples, or
        the input has other channels than the link (on all ranks).
    DtypeError
        In training mode, the input is made of integers (on all ranks).
    """

    def __init__(
        self,
        size: int | tuple[int, ...] | None,
        comm: Communicator,
        decay: float = 0.9,
        eps: float = 2e-5,
        dtype: Any = None,
        use_gamma: bool = True,
        use_beta: bool = True,
        initial_gamma: Any = None,
        initial_beta: Any = None,
        communication_backend: str = 'auto',
        *,
        axis: int | tuple[int, ...] | None = None,
        losses: str = 'mean',
    ) -> None:
        if size is None and axis is None:
            raise ArgumentError('MultiNodeBatchNormalization: give size, or axis to find it by.')
        _check_backend(communication_backend, comm)
        if losses not in ('mean', 'sum'):
            raise ArgumentError(
                f"MultiNodeBatchNormalization: losses is 'mean' or 'sum', but got {losses!r}."
            )
        super().__init__(
            size, decay, eps, dtype, use_gamma, use_beta, initial_gamma, initial_beta, axis
        )
        self.comm = comm
        self.losses = losses

    def forward(self, x: Input, finetune: bool = False) -> Variable:
        """Normalise `x`, and in training mode update the running statistics."""
        if not chainer.config.train:
            return super().forward(x)
        x = as_variable(x, 'MultiNodeBatchNormalization')
        axes = self._reduced_axes(x.ndim)
        shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
        self._check_input(x, axes)
        if self.avg_mean is None:
            self._initialize_params(_kept(x, axes))
        n, mean, weight = self._mean_of_all(x.array, axes)
        precise = np.promote_types(np.promote_types(x.dtype, np.float32), self._highprec_dtype)
        centered = F.cast(x, precise) - mean.astype(precise).reshape(shape)
        rest, var = self._moments(centered, axes, n, weight)
        if not chainer.config.in_recomputing:
            self._update(mean, var.array, n, finetune)
        scale = (var + self.eps) ** -0.5
        if self.gamma is not None:
            scale *= F.cast(self.gamma, precise)
        y = (centered - F.reshape(rest, shape)) * F.reshape(scale, shape)
        if self.beta is not None:
            y += F.reshape(F.cast(self.beta, precise), shape)
        return F.cast(y, x.dtype)

    def _reduced_axes(self, ndim: int) -> tuple[int, ...]:
        if self.axis is not None:
            return tuple(a % ndim for a in self.axis)
        return (0, *range(self.avg_mean.ndim + 1, ndim))

    def _check_input(self, x: Variable, axes: tuple[int, ...]) -> None:
        """Refuse what would be cast or broadcast; the ranks that have begun raise, too."""
        if x.dtype.kind in 'biu':
            with self.comm._meet(_CALL):
                raise DtypeError(
                    f'{_CALL}: needs floating-point numbers but got {x.dtype}. Convert the input.'
                )
        if self.avg_mean is not None and _kept(x, axes) != self.avg_mean.shape:
            with self.comm._meet(_CALL):
                raise ArgumentError(
                    f'{_CALL}: the input has other channels, expected {self.avg_mean.shape} but '
                    f'got {_kept(x, axes)}, of an input of shape {x.shape}. Give the link that '
                    'size, or other axes.'
                )

    def _mean_of_all(self, x: Array, axes: tuple[int, ...]) -> tuple[float, Array, float]:
        """Return number and mean of all ranks' values, in float64, and the weight of this rank."""
        xp, own = module_of(x), float(np.prod([x.shape[a] for a in axes]))
        sums = x.sum(axis=axes, dtype=np.float64)
        total = self.comm.allreduce(xp.concatenate([xp.asarray([own]), sums.reshape(-1)]))
        n = float(total[0])
        if n == 0:
            raise ArgumentError(
                'MultiNodeBatchNormalization: no rank has any samples. '
                'Give at least one rank a batch, or use chainer.config.train = False.'
            )
        weight = own * self.comm.size / n if self.losses == 'mean' else 1.0
        return n, (total[1:] / n).reshape(sums.shape), weight

    def _moments(
        self, centered: Variable, axes: tuple[int, ...], n: float, weight: float
    ) -> tuple[Variable, Variable]:
        """Return what is left of the mean, about 0, and the variance."""
        sums = F.stack([F.sum(centered, axes), F.sum(centered**2, axes)])
        total, _ = Total(self.comm, Route(weight=weight)).run((sums,))
        rest, square = F.separate(total / n)
        return rest, square - rest**2

    def _update(self, mean: Array, var: Array, n: float, finetune: bool) -> None:
        self.N += finetune
        decay = 1 - 1 / self.N if finetune else self.decay
        self.avg_mean *= decay
        self.avg_mean += (1 - decay) * mean
        self.avg_var *= decay
        self.avg_var += (1 - decay) * var * (n / max(n - 1, 1))  # the unbiased estimate


def create_mnbn_model(
    link: chainer.Link, comm: Communicator, communication_backend: str = 'auto'
) -> chainer.Link:
    """Return a copy of `link` that normalises over the batches of all ranks.

    Each `chainer.links.BatchNormalization` in it, at any depth, becomes a
    `MultiNodeBatchNormalization` with the same parameters, statistics and settings, also `axis`
    and a size yet to be found. The original stays as it is.

    Parameters
    ----------
    link : chainer.Link
    comm : Communicator
    communication_backend : {'auto', 'mpi', 'nccl'}
    """
    _check_backend(communication_backend, comm)
    model = copy.deepcopy(link)
    for part in model.links():
        if type(part) is L.BatchNormalization:  # not what derives from it: it does other things
            # the copy keeps its place in the tree, whoever refers to it
            part.__class__ = MultiNodeBatchNormalization
            part.comm, part.losses = comm, 'mean'
    return model


def _kept(x: Variable, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the lengths of the axes over which no mean is taken."""
    return tuple(d for i, d in enumerate(x.shape) if i not in axes)


def _check_backend(backend: str, comm: Communicator) -> None:
    if backend not in ('auto', 'mpi', 'nccl') or (backend == 'nccl' and comm.name != 'nccl'):
        raise ArgumentError(
            "MultiNodeBatchNormalization: communication_backend is 'auto', 'mpi', or 'nccl' with "
            f'a communicator of that name, but got {backend!r} with {comm.name!r}.'
        )
