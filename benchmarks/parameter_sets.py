"""Shapes of the parameters of three models, largest first in bytes: what gradients look like."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

Shape = tuple[int, ...]


def mlp() -> list[Shape]:
    """The MNIST example's 784-1000-1000-10: 6 arrays, 1.8 million numbers."""
    sizes = [784, 1000, 1000, 10]
    layers = itertools.pairwise(sizes)
    return [shape for n_in, n_out in layers for shape in ((n_out, n_in), (n_out,))]


def resnet50() -> list[Shape]:
    """ResNet-50 (He et al. 2016, table 1): 161 arrays, 25.6 million numbers."""
    return list(_resnet50())


def small() -> list[Shape]:
    """400 arrays of 256 numbers: many small ones, as in a deep net of narrow layers."""
    return [(256,)] * 400


def _resnet50() -> Iterator[Shape]:
    yield from _convolution(3, 64, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from _convolution(channels, width, 1)
            yield from _convolution(width, width, 3)
            yield from _convolution(width, 4 * width, 1)
            if block == 0:  # the shortcut changes the number of channels
                yield from _convolution(channels, 4 * width, 1)
            channels = 4 * width
    yield from ((1000, channels), (1000,))


def _convolution(n_in: int, n_out: int, kernel: int) -> Iterator[Shape]:
    """A convolution without bias, and the scale and shift of its batch normalisation."""
    yield from ((n_out, n_in, kernel, kernel), (n_out,), (n_out,))


SETS = {'mlp': mlp, 'resnet50': resnet50, 'small': small}
