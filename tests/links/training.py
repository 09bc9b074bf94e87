"""One training on many ranks, beside the same on one: the whole batch, one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import chainer
import chainer.functions as F
import numpy as np
from chainer.serializers import DictionarySerializer

from mnx.links.split_parameter import SplitParameter
from mnx.testing import relative_difference

Batches = list[tuple[np.ndarray, np.ndarray]]


def seeded(make: Callable[[], chainer.Link], seed: int = 0) -> chainer.Link:
    """Return ``make()``, in float64, as if the program began with it."""
    np.random.seed(seed)
    with chainer.using_config('dtype', np.float64):
        return make()


def batches(n: int, shape: tuple[int, ...], n_classes: int, size: int = 17) -> Batches:
    """Return `n` batches, the same on all ranks."""
    generator = np.random.default_rng(7)
    teacher = generator.standard_normal((int(np.prod(shape)), n_classes))
    X = generator.standard_normal((n, size, *shape))
    return [(x, np.int32((x.reshape(size, -1) @ teacher).argmax(axis=1))) for x in X]


def train(
    model: chainer.Link, data: Batches, optimizer: chainer.Optimizer | None = None
) -> list[float]:
    """Train with plain Chainer; return the loss of every step."""
    optimizer = optimizer or chainer.optimizers.MomentumSGD(0.05)
    optimizer.setup(model)
    losses = []
    for x, t in data:
        loss = F.softmax_cross_entropy(model(x), t)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        losses.append(float(loss.array))
    return losses


def wholes(obj: Any) -> dict[str, np.ndarray]:
    """Return everything that would be saved, as one process would. Collective."""
    serializer = DictionarySerializer()
    serializer.save(obj)
    return {name: np.asarray(value) for name, value in serializer.target.items()}


def assert_equal_wholes(found: Any, expected: Any, rtol: float) -> None:
    """Check that two links or optimizers would be saved alike. Collective."""
    found, expected = wholes(found), wholes(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype.kind == 'f':
            assert found[name].dtype == value.dtype, name
            assert relative_difference(found[name], value) <= rtol, name
        else:
            assert found[name] == value, name


def split_params(model: chainer.Link) -> Iterator[SplitParameter]:
    return (p for p in model.params() if isinstance(p, SplitParameter))
