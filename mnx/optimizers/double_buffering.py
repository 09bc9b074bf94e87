"""The exchange of one update behind the computation of the next.

    update k     forward, backward ──► g(k) ─ start ─┐          apply mean g(k-1)
    update k+1   forward, backward ──► g(k+1) ─ start ─ ─ ─ ┐   apply mean g(k)
                 └── meanwhile g(k) is summed ──┘

The parameters are those of one process which applies each gradient one update late: the first
update applies none, and `flush` applies the last. It converges as that does: a gradient that is one
step old is not the same as a fresh one.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda
from chainer.serializer import Deserializer, Serializer

from mnx.arrays import Array
from mnx.communicators import Communicator
from mnx.communicators.gradient_messages import PendingMean
from mnx.errors import ArgumentError
from mnx.gradients.exchange import GradientExchange
from mnx.optimizers.drift import PERIOD
from mnx.optimizers.multi_node import MultiNodeOptimizer


@dataclass(frozen=True)
class Arrived:
    """Means that are there already, as from a snapshot."""

    means: dict[str, Array]

    def test(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> dict[str, Array]:
        """Return the means."""
        return self.means


@dataclass(frozen=True)
class Flight:
    """Gradients on their way, and what they were multiplied by against underflow."""

    pending: PendingMean | Arrived
    loss_scale: float | None


class Progress(chainer.FunctionHook):
    """Lets MPI go on between the functions of forward and backward."""

    name = 'mnx.optimizers.Progress'

    def __init__(self, flight: Flight) -> None:
        self._test = flight.pending.test

    def forward_postprocess(self, function: Any, in_data: Any) -> None:
        self._test()

    def backward_postprocess(self, function: Any, in_data: Any, out_grad: Any) -> None:
        self._test()


class DoubleBufferingOptimizer(MultiNodeOptimizer):
    """What `create_multi_node_optimizer` returns for ``double_buffering=True``.

    As `MultiNodeOptimizer`, but an update applies the mean gradients of the one before. While they
    wait to be applied, they are part of what `serialize` saves and loads.
    """

    _OWN = MultiNodeOptimizer._OWN | {'_flight', '_zero_fill'}

    def __init__(
        self,
        actual_optimizer: chainer.Optimizer,
        communicator: Communicator,
        zero_fill: bool,
        weight: Callable[..., float] | None = None,
        period: int = PERIOD,
    ) -> None:
        exchange = GradientExchange(communicator, zero_fill)
        self._flight: Flight | None = None
        self._zero_fill = zero_fill
        super().__init__(actual_optimizer, communicator, exchange, weight, period)

    def setup(self, link: chainer.Link) -> MultiNodeOptimizer:
        """Set the model to train; gradients of another one are dropped. Collective."""
        self._flight = None
        return super().setup(link)

    def wait(self) -> None:
        """Return when the gradients in flight, if any, have arrived. They are not applied."""
        if self._flight is not None:
            self._flight.pending.wait()

    def flush(self) -> None:
        """Apply the gradients in flight, if any, as after the last update of a training.

        Collective: all ranks call it. Then the next update applies none.
        """
        with self.communicator.together('flush') as meeting:
            meeting.bring(f'in_flight={self._flight is not None}')
        self._apply_flight()

    def serialize(self, serializer: Serializer) -> None:
        """Save or load the actual optimizer's state and the gradients in flight.

        As `MultiNodeOptimizer.serialize`: all ranks must load. A file that was saved without double
        buffering has no such gradients, and is refused.
        """
        if isinstance(serializer, Deserializer):
            super().serialize(serializer)
            self._flight = _loaded(serializer['in_flight'], self.target)
        else:
            _make_states(self.target)
            super().serialize(serializer)
            _save(serializer['in_flight'], self.target, self._flight)

    def _step(self, weight: float | None, facts: str) -> None:
        started = self.communicator.start_mean_grad(
            self.target, self._zero_fill, weight=weight, fact=facts
        )
        flight = Flight(started, self.actual_optimizer._loss_scale)
        self._apply_flight()
        self._flight = flight

    def _apply_flight(self) -> None:
        flight, self._flight = self._flight, None
        if flight is None:
            self.target.cleargrads()  # they are no mean
            return
        means = flight.pending.wait()
        self.target.cleargrads()
        for name, param in self.target.namedparams(include_uninit=False):
            param._loss_scale = flight.loss_scale
            if name in means:  # a parameter with several names has its mean by one of them
                param.grad = param.device.send(means[name])
        self._apply()

    def _backward(
        self,
        lossfun: Callable[..., chainer.Variable],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
    ) -> None:
        with self._progress():
            super()._backward(lossfun, args, kwds)

    def _progress(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self._flight is None else Progress(self._flight)

    def _replicate_what_differs(self) -> bool:
        if not self._compared:
            self._replicate_flight()
        return super()._replicate_what_differs()

    def _replicate_flight(self) -> None:
        """Take rank 0's gradients where those in flight differ, as after loading. Collective."""
        flight = self._flight
        means = {} if flight is None else _on_host(flight.pending.wait())
        scale = None if flight is None else flight.loss_scale
        digest = zlib.crc32(repr([(k, zlib.crc32(v)) for k, v in sorted(means.items())]).encode())
        facts = self.communicator.allgather_obj((flight is None, scale, digest))
        if any(other != facts[0] for other in facts):
            means, scale = self.communicator.bcast_obj((means, scale))
            self._flight = None if facts[0][0] else Flight(Arrived(means), scale)


def _on_host(means: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.ascontiguousarray(cuda.to_cpu(mean)) for name, mean in means.items()}


def _make_states(model: chainer.Link) -> None:
    """Give update rules their first states: Chainer cannot load a file that was saved without."""
    for param in model.params(include_uninit=False):
        rule = param.update_rule
        if rule is not None and not (rule._use_fp32_update and param.dtype == np.float16):
            rule._init_states(param)


def _save(serializer: Serializer, model: chainer.Link, flight: Flight | None) -> None:
    means = {} if flight is None else _on_host(flight.pending.wait())
    names = sorted(name for name, _ in model.namedparams())
    scale = None if flight is None else flight.loss_scale
    serializer('is_there', np.asarray(flight is not None))
    serializer('loss_scale', np.asarray(np.nan if scale is None else scale))
    serializer('present', np.asarray([name in means for name in names]))
    for name in filter(means.__contains__, names):
        serializer[name]('grad', means[name])


def _loaded(deserializer: Deserializer, model: chainer.Link) -> Flight | None:
    try:
        is_there = deserializer('is_there', None)
    except KeyError as error:
        raise ArgumentError(
            'serialize: the file was saved without double_buffering, so it holds no gradients in '
            'flight. Load it into an optimizer made without, or save it with.'
        ) from error
    if is_there is None or not is_there:
        return None
    names = sorted(name for name, _ in model.namedparams())
    present = np.asarray(deserializer('present', None))
    scale = float(deserializer('loss_scale', None))
    means = {
        name: np.asarray(deserializer[name]('grad', None))
        for name, there in zip(names, present, strict=True)
        if there
    }
    return Flight(Arrived(means), None if np.isnan(scale) else scale)
