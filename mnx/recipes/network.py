"""A plan's layers as links of Chainer: whole, split over a row, normalised over a column.

With one rank, in a row or in a column, all is plain Chainer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import initializers

from mnx.arrays import Array, module_of
from mnx.links import MultiNodeBatchNormalization, ParallelLinear
from mnx.links.parallelize import Role
from mnx.recipes import schema
from mnx.recipes.grid import Grid
from mnx.recipes.plan import GATES, LayerPlan, Shape, normalized_size, sequence_of

Variable = Any
Stage = Any  # a link, or a function of a variable

ACTIVATIONS: dict[str, Callable[[Variable], Variable]] = {
    'identity': F.identity,
    'relu': F.relu,
    'leaky_relu': F.leaky_relu,
    'elu': F.elu,
    'tanh': F.tanh,
    'logistic': F.sigmoid,
    'softplus': F.softplus,
}


class Network(chainer.Chain):
    """The layers of a recipe, one behind the other. Collective, if they are split.

    Parameters
    ----------
    layers : list of LayerPlan
    batch_size : int
        Of the whole batch, in training.
    grid : Grid
    """

    def __init__(self, layers: list[LayerPlan], batch_size: int, grid: Grid) -> None:
        super().__init__()
        self._inputs = layers[0].inputs
        self._stages: list[Stage] = []
        place = Place(grid, batch_size)
        for layer in layers:
            stage = _OF_TYPE[type(layer.layer)](layer, place)
            if isinstance(stage, chainer.Link):
                self.add_link(layer.name, stage)
            self._stages.append(stage)
            activation = getattr(layer.layer, 'activation', 'identity')
            if activation != 'identity':
                self._stages.append(ACTIVATIONS[activation])

    def forward(self, x: Array) -> Variable:
        """Return one number for each class, (B, n_classes), for samples (B, ...)."""
        y: Variable = F.reshape(x, (len(x), *self._inputs))
        for stage in self._stages:
            y = stage(y)
        return y


@dataclass(frozen=True)
class Place:
    """Where the layers are, and how many samples all ranks have together in training."""

    grid: Grid
    batch_size: int


def _dense(known: LayerPlan, place: Place) -> Stage:
    layer = known.layer
    assert isinstance(layer, schema.Dense)
    return linear(
        int(np.prod(known.inputs)),
        layer.units,
        known.role,
        place.grid,
        nobias=not layer.bias,
        initialW=initialiser(layer.init),
        initial_bias=initialiser(layer.bias_init),
    )


def linear(n_in: int, n_out: int, role: Role | None, grid: Grid, **values: Any) -> chainer.Link:
    """Return a linear layer: a part of it, if it has a role and the row has other ranks."""
    if role is None or grid.row.size == 1:
        return L.Linear(n_in, n_out, **values)
    return ParallelLinear(
        n_in,
        n_out,
        grid.row,
        role.partition,
        role.gather_output,
        input_is_split=role.input_is_split,
        **values,
    )


def _convolution(known: LayerPlan, place: Place) -> Stage:
    layer = known.layer
    assert isinstance(layer, schema.Convolution)
    return L.Convolution2D(
        known.inputs[0],
        layer.channels,
        tuple(layer.kernel),
        tuple(layer.stride),
        tuple(layer.pad),
        nobias=not layer.bias,
        initialW=initialiser(layer.init),
        initial_bias=initialiser(layer.bias_init),
    )


def _pooling(known: LayerPlan, place: Place) -> Stage:
    layer = known.layer
    assert isinstance(layer, schema.Pooling)
    kernel, pad = tuple(layer.kernel), tuple(layer.pad)
    stride = tuple(layer.stride) if layer.stride else kernel
    if layer.kind == 'average':
        return lambda x: F.average_pooling_2d(x, kernel, stride, pad)
    return lambda x: F.max_pooling_2d(x, kernel, stride, pad, cover_all=False)


def _normalization(known: LayerPlan, place: Place) -> Stage:
    layer, column = known.layer, place.grid.column
    assert isinstance(layer, schema.BatchNormalization)
    size = normalized_size(known.inputs)
    axis = (0, 1) if len(known.inputs) == 2 else None  # samples and steps; or the usual
    if column.size == 1:
        return L.BatchNormalization(size, layer.decay, layer.epsilon, axis=axis)
    return MultiNodeBatchNormalization(size, column, layer.decay, layer.epsilon, axis=axis)


class Dropout:
    """Zeros for random units, the same ones however the samples are spread.

    Each rank draws the numbers for the whole batch and takes those of its own samples, so that all
    random states go on alike.
    """

    def __init__(self, ratio: float, place: Place) -> None:
        self.ratio = ratio
        self._place = place

    def __call__(self, x: Variable) -> Variable:
        """Return `x`, (own samples, ...), with zeros in training."""
        if not chainer.config.train or self.ratio == 0:
            return x
        return F.dropout(x, self.ratio, mask=self._mask(x.array))

    def _mask(self, x: Array) -> Array:
        xp, place = module_of(x), self._place
        numbers = xp.random.rand(place.batch_size, *x.shape[1:])
        kept = place.grid.share_of(numbers) >= self.ratio
        return kept * x.dtype.type(1 / (1 - self.ratio))


def _dropout(known: LayerPlan, place: Place) -> Stage:
    assert isinstance(known.layer, schema.Dropout)
    return Dropout(known.layer.ratio, place)


def _activation(known: LayerPlan, place: Place) -> Stage:
    assert isinstance(known.layer, schema.ActivationLayer)
    return ACTIVATIONS[known.layer.function]


class Recurrent(chainer.Chain):
    """A recurrent layer over the steps of each sample.

    ::

        x_1 .. x_T ──[ upward ]──► u_1 .. u_T        all steps at once
        h_t = cell(u_t + lateral(h_t-1))             step by step
    """

    def __init__(self, known: LayerPlan, grid: Grid) -> None:
        super().__init__()
        layer = known.layer
        assert isinstance(layer, schema.Recurrent)
        self.layer = layer
        self.n_steps, n_in = sequence_of(known.inputs)
        units, n_out = layer.units, layer.units * GATES[layer.cell]
        init = initialiser(layer.init)
        with self.init_scope():
            self.upward = linear(n_in, n_out, known.role, grid, initialW=init)
            self.lateral = linear(units, n_out, known.role, grid, initialW=init, nobias=True)

    def forward(self, x: Variable) -> Variable:
        """Return the last state, (B, units), or all, (B, T, units)."""
        step = _CELLS[self.layer.cell]
        state: tuple[Variable, ...] = ()
        states = []
        for u in F.separate(self.upward(as_sequence(x), n_batch_axes=2), axis=1):
            state = step(u, self.lateral(state[0]) if state else None, state)
            states.append(state[0])
        return state[0] if self.layer.output == 'last' else F.stack(states, axis=1)


def as_sequence(x: Variable) -> Variable:
    """Return pictures (B, channels, height, width) as sequences (B, height, channels * width)."""
    if x.ndim == 3:
        return x
    rows = F.transpose(x, (0, 2, 1, 3))
    return F.reshape(rows, (*rows.shape[:2], -1))


def _tanh(u: Variable, v: Variable | None, state: tuple[Variable, ...]) -> tuple[Variable, ...]:
    return (F.tanh(u if v is None else u + v),)


def _lstm(u: Variable, v: Variable | None, state: tuple[Variable, ...]) -> tuple[Variable, ...]:
    units = u.shape[1] // 4
    c = state[1] if state else module_of(u.array).zeros((len(u), units), u.dtype)
    c, h = F.lstm(c, u if v is None else u + v)
    return h, c


def _gru(u: Variable, v: Variable | None, state: tuple[Variable, ...]) -> tuple[Variable, ...]:
    """Cho et al., 2014, with the reset gate behind the matrix, as in cuDNN."""
    u_reset, u_update, u_new = F.split_axis(u, 3, axis=1)
    if v is None:
        return ((1 - F.sigmoid(u_update)) * F.tanh(u_new),)
    v_reset, v_update, v_new = F.split_axis(v, 3, axis=1)
    update = F.sigmoid(u_update + v_update)
    new = F.tanh(u_new + F.sigmoid(u_reset + v_reset) * v_new)
    return ((1 - update) * new + update * state[0],)


_CELLS = {'tanh': _tanh, 'lstm': _lstm, 'gru': _gru}


def _recurrent(known: LayerPlan, place: Place) -> Stage:
    return Recurrent(known, place.grid)


_OF_TYPE: dict[type, Callable[[LayerPlan, Place], Stage]] = {
    schema.Dense: _dense,
    schema.Convolution: _convolution,
    schema.Pooling: _pooling,
    schema.BatchNormalization: _normalization,
    schema.Dropout: _dropout,
    schema.Recurrent: _recurrent,
    schema.ActivationLayer: _activation,
}


class Between(chainer.Initializer):
    """Uniform between two numbers."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def __call__(self, array: Array) -> None:
        """Fill `array` in place."""
        array[...] = module_of(array).random.uniform(self.low, self.high, array.shape)


class Gaussian(chainer.Initializer):
    """Normal, with a mean."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def __call__(self, array: Array) -> None:
        """Fill `array` in place."""
        array[...] = module_of(array).random.normal(self.mean, self.std, array.shape)


_BY_FAN = {
    'glorot_uniform': initializers.GlorotUniform,
    'glorot_normal': initializers.GlorotNormal,
    'he_uniform': initializers.HeUniform,
    'he_normal': initializers.HeNormal,
    'lecun_normal': initializers.LeCunNormal,
}


def initialiser(entry: schema.Initialiser | None) -> Any:
    """Return Chainer's initialiser; None, its own choice, if the recipe has none."""
    match entry:
        case schema.Constant(value=value):
            return initializers.Constant(value)
        case schema.Uniform(low=low, high=high):
            return Between(low, high)
        case schema.Gaussian(mean=mean, std=std):
            return Gaussian(mean, std)
        case schema.ByFan(type=kind, scale=scale):
            return _BY_FAN[kind](scale)
    return None


def sample_shape(n_numbers: int, wanted: list[int] | None) -> Shape | None:
    """Return the shape of a sample: as wanted, or of a square picture; None if it cannot be.

    >>> sample_shape(64, None), sample_shape(63, None), sample_shape(64, [1, 4, 16])
    ((1, 8, 8), (63,), (1, 4, 16))
    """
    if wanted is not None:
        return tuple(wanted) if int(np.prod(wanted)) == n_numbers else None
    side = round(n_numbers**0.5)
    return (1, side, side) if side**2 == n_numbers else (n_numbers,)
