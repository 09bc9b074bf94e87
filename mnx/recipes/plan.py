"""What a recipe's layers are in numbers: shapes, weights, who holds what, and what is sent.

Pure functions of the recipe and the shape of a sample, so that mistakes are found before anything
is made, and ``mnx train --describe`` tells of 64 ranks on a laptop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import chainer

from mnx.functions.replicated import part_bounds
from mnx.links.parallelize import ALONE, FIRST_OF_PAIR, SECOND_OF_PAIR, Role
from mnx.recipes import schema
from mnx.recipes.document import EntryError

Shape: TypeAlias = 'tuple[int, ...]'  # of one sample

_WITHOUT_LAYERS = chainer.Sequential()  # whose attributes no layer can be called by

GATES = {'lstm': 4, 'gru': 3, 'tanh': 1}


@dataclass(frozen=True)
class Weight:
    """A parameter.

    Attributes
    ----------
    name : str
    shape : tuple of int
    axis : int or None
        Along which the ranks of a model split it; None: each has the whole.
    """

    name: str
    shape: Shape
    axis: int | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def held(self, rank: int, size: int) -> int:
        """Return how many of them a rank has, of the `size` that share a model."""
        if self.axis is None:
            return self.size
        length = self.shape[self.axis]
        start, end = part_bounds(length, rank, size)
        return self.size // length * (end - start)


@dataclass(frozen=True)
class Message:
    """What the ranks of a model, or of a part of the data, exchange in each step.

    Attributes
    ----------
    among : {'model', 'data'}
        Those that share a model, or those that share the data.
    when : {'forward', 'backward'}
    kind : {'gather', 'sum'}
    per_sample, once : int
        So many numbers for each sample, and so many in any case.
    calls : int
    """

    among: str
    when: str
    kind: str
    per_sample: int = 0
    once: int = 0
    calls: int = 1

    def numbers(self, samples: int) -> int:
        """Return how many numbers they have in the end."""
        return self.per_sample * samples + self.once


@dataclass(frozen=True)
class LayerPlan:
    """One layer between two shapes."""

    name: str
    layer: schema.Layer
    inputs: Shape
    outputs: Shape
    weights: tuple[Weight, ...] = ()
    messages: tuple[Message, ...] = ()
    role: Role | None = None  # None: whole on each rank

    @property
    def kind(self) -> str:
        """The layer's type, as in the file."""
        kind: str = self.layer.type
        return kind


def plan(recipe: schema.Recipe, inputs: Shape, n_classes: int) -> list[LayerPlan]:
    """Return all layers, the first of which sees samples of the shape `inputs`.

    Raises
    ------
    EntryError
        A layer cannot work on what the one before returns, or the last one does not return one
        number for each class.
    """
    layers: list[LayerPlan] = []
    roles = roles_of(recipe)
    for i, (layer, name) in enumerate(zip(recipe.layers, names_of(recipe), strict=True)):
        known = LayerPlan(name, layer, inputs, inputs, role=roles[i])
        made = _OF_TYPE[type(layer)](known, i)
        if not any(p.weights for p in layers):  # below is nothing to train: no gradient is needed
            made = replace(made, messages=tuple(_without_gradient_of_input(made)))
        layers.append(made)
        inputs = made.outputs
    if inputs != (n_classes,):
        raise EntryError(
            ('layers', len(layers) - 1),
            f'the last layer returns {_shown(inputs)} for each sample, expected {n_classes}: '
            'one number for each class',
        )
    return layers


def names_of(recipe: schema.Recipe) -> list[str]:
    """Return the layers' names; those without one are called by type and number.

    Raises
    ------
    EntryError
        Two layers have the same name, or it cannot be that of a link.
    """
    names: list[str] = []
    numbers: dict[str, Iterator[int]] = {}
    for i, layer in enumerate(recipe.layers):
        number = next(numbers.setdefault(layer.type, itertools.count(1)))
        name = layer.name or f'{layer.type}{number}'
        if hasattr(_WITHOUT_LAYERS, name):
            raise EntryError(('layers', i, 'name'), f'{name!r} is a word of Chainer. Take another')
        if name in names:
            raise EntryError(
                ('layers', i, 'name') if layer.name else ('layers', i),
                f'layers[{names.index(name)}] is called {name!r} already',
            )
        names.append(name)
    return names


def roles_of(recipe: schema.Recipe) -> list[Role | None]:
    """Return how each layer is split over the ranks that share a model."""
    roles = [_role(layer, recipe.partition) for layer in recipe.layers]
    if recipe.partition == 'pairs':
        taken = -1
        for i, (first, second) in enumerate(itertools.pairwise(recipe.layers)):
            if i > taken and _is_free(first) and _is_free(second):
                roles[i : i + 2] = FIRST_OF_PAIR, SECOND_OF_PAIR
                taken = i + 1
    return roles


def _is_free(layer: schema.Layer) -> bool:
    return isinstance(layer, schema.Dense) and layer.partition is None


def _role(layer: schema.Layer, default: str) -> Role | None:
    if not isinstance(layer, schema.Dense | schema.Recurrent) or layer.partition == 'whole':
        return None
    return Role('input') if (layer.partition or default) == 'input' else ALONE


def _shown(shape: Shape) -> str:
    return 'x'.join(map(str, shape))


# --- layer by layer -------------------------------------------------------------------------------


def _dense(known: LayerPlan, i: int) -> LayerPlan:
    layer = known.layer
    assert isinstance(layer, schema.Dense)
    n_in, n_out = math.prod(known.inputs), layer.units
    weights = _matrix(n_out, n_in, known.role, 'W', layer.bias and 'b')
    messages = _traffic(n_out, n_in, known.role)
    return replace(known, outputs=(n_out,), weights=tuple(weights), messages=tuple(messages))


def _matrix(
    n_out: int, n_in: int, role: Role | None, weight: str, bias: str | bool
) -> Iterator[Weight]:
    by_output = role is not None and role.partition == 'output'
    yield Weight(weight, (n_out, n_in), None if role is None else 0 if by_output else 1)
    if bias:
        yield Weight(str(bias), (n_out,), 0 if by_output else None)


def _traffic(n_out: int, n_in: int, role: Role | None, rows: int = 1) -> Iterator[Message]:
    """Return what a split matrix sends for `rows` vectors of each sample, as `ParallelLinear`."""
    if role is None:
        return
    forward, backward = ('gather', 'sum') if role.partition == 'output' else ('sum', 'gather')
    if role.gather_output is not False:
        yield Message('model', 'forward', forward, rows * n_out)
    if not role.input_is_split:
        yield Message('model', 'backward', backward, rows * n_in)


def _without_gradient_of_input(layer: LayerPlan) -> Iterator[Message]:
    backward = (m for m in layer.messages if (m.among, m.when) == ('model', 'backward'))
    first = next(backward, None)
    return (m for m in layer.messages if m is not first)


def _recurrent(known: LayerPlan, i: int) -> LayerPlan:
    layer, role = known.layer, known.role
    assert isinstance(layer, schema.Recurrent)
    n_steps, n_in = sequence_of(known.inputs, i)
    units, n_out = layer.units, layer.units * GATES[layer.cell]
    weights = [
        *_matrix(n_out, n_in, role, 'upward/W', 'upward/b'),
        *_matrix(n_out, units, role, 'lateral/W', False),
    ]
    # the first step has nothing before it
    lateral = (
        replace(m, per_sample=(n_steps - 1) * m.per_sample, calls=n_steps - 1)
        for m in _traffic(n_out, units, role)
        if n_steps > 1
    )
    return replace(
        known,
        outputs=(units,) if layer.output == 'last' else (n_steps, units),
        weights=tuple(weights),
        messages=(*_traffic(n_out, n_in, role, n_steps), *lateral),
    )


def sequence_of(shape: Shape, i: int = 0) -> tuple[int, int]:
    """Return steps and numbers in each, of a sample: the rows of a picture, channels side by side.

    >>> sequence_of((3, 8, 6))
    (8, 18)
    """
    match shape:
        case (channels, height, width):
            return height, channels * width
        case (n_steps, n_in):
            return n_steps, n_in
    raise EntryError(
        ('layers', i),
        f'a recurrent layer needs a sequence or a picture, but gets {_shown(shape)}. Give the '
        'layer before it output: all, or data a shape',
    )


def _convolution(known: LayerPlan, i: int) -> LayerPlan:
    layer = known.layer
    assert isinstance(layer, schema.Convolution)
    channels, *sides = _picture(known.inputs, i, 'convolution')
    outputs = (layer.channels, *_windows(sides, layer.kernel, layer.stride, layer.pad, i))
    weights = [Weight('W', (layer.channels, channels, *layer.kernel))]
    if layer.bias:
        weights.append(Weight('b', (layer.channels,)))
    return replace(known, outputs=outputs, weights=tuple(weights))


def _pooling(known: LayerPlan, i: int) -> LayerPlan:
    layer = known.layer
    assert isinstance(layer, schema.Pooling)
    channels, *sides = _picture(known.inputs, i, 'pooling')
    if any(p >= k for p, k in zip(layer.pad, layer.kernel, strict=True)):
        raise EntryError(
            ('layers', i, 'pad'),
            f'expected less than the kernel, which is {_shown((*layer.kernel,))}',
        )
    stride = layer.stride or layer.kernel
    return replace(known, outputs=(channels, *_windows(sides, layer.kernel, stride, layer.pad, i)))


def _picture(shape: Shape, i: int, what: str) -> Shape:
    if len(shape) != 3:
        raise EntryError(
            ('layers', i),
            f'{what} needs a picture of channels x height x width, but gets {_shown(shape)}',
        )
    return shape


def _windows(
    sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], i: int
) -> Shape:
    """Return how often a window fits into a picture, downwards and across."""
    whole = [s + 2 * p for s, p in zip(sides, pad, strict=True)]
    if any(k > s for k, s in zip(kernel, whole, strict=True)):
        raise EntryError(
            ('layers', i, 'kernel'),
            f'a window of {_shown((*kernel,))} does not fit into {_shown((*whole,))}',
        )
    return tuple((s - k) // d + 1 for s, k, d in zip(whole, kernel, stride, strict=True))


def _normalization(known: LayerPlan, i: int) -> LayerPlan:
    size = normalized_size(known.inputs)
    return replace(
        known,
        weights=(Weight('gamma', (size,)), Weight('beta', (size,))),
        messages=(
            Message('data', 'forward', 'sum', once=1 + size),
            Message('data', 'forward', 'sum', once=2 * size),
            Message('data', 'backward', 'sum', once=2 * size),
        ),
    )


def normalized_size(shape: Shape) -> int:
    """Return how many means are taken: one for each channel, or for each number of a step."""
    return shape[0] if len(shape) == 3 else shape[-1]


def _as_it_is(known: LayerPlan, i: int) -> LayerPlan:
    return known


_OF_TYPE = {
    schema.Dense: _dense,
    schema.Recurrent: _recurrent,
    schema.Convolution: _convolution,
    schema.Pooling: _pooling,
    schema.BatchNormalization: _normalization,
    schema.Dropout: _as_it_is,
    schema.ActivationLayer: _as_it_is,
}
