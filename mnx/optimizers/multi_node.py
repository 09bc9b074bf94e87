"""Any Chainer optimizer, fed with gradients averaged over all ranks.

One ``update(lossfun, *args)`` on every rank::

    1. forward   2. backward   3. exchange             4. the actual optimizer's update
    loss_r   ->  grad_r    ->  mean over all samples ->  hooks, rule: equal on all ranks
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from numbers import Real
from typing import Any

import chainer
from chainer.backends import cuda
from chainer.serializer import Deserializer, Serializer

from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.gradients.exchange import GradientExchange
from mnx.gradients.noise import same_noise
from mnx.optimizers.batch_size import batch_size, other_sizes
from mnx.optimizers.drift import PERIOD, DriftCheck
from mnx.optimizers.link_state import LinkState
from mnx.optimizers.replicate import (
    InitializeOnce,
    free_if_used,
    is_replicated,
    replicate,
    replicate_parameters,
)


class MultiNodeOptimizer:
    """What `create_multi_node_optimizer` returns.

    Reads and writes of any other attribute (``lr``, ``t``, ``target``, ``add_hook`` ...) go to
    the actual optimizer, so Chainer's Trainer, updaters, hooks and schedules work unchanged.

    Attributes
    ----------
    actual_optimizer : chainer.Optimizer
    communicator : Communicator
    weight : callable or None
        As given to `create_multi_node_optimizer`.
    """

    _OWN = frozenset(
        {
            'actual_optimizer',
            'communicator',
            'weight',
            '_exchange',
            '_lazy',
            '_once',
            '_compared',
            '_drift',
        }
    )

    def __init__(
        self,
        actual_optimizer: chainer.Optimizer,
        communicator: Communicator,
        exchange: GradientExchange,
        weight: Callable[..., float] | None = None,
        check_every: int = PERIOD,
    ) -> None:
        self.actual_optimizer = actual_optimizer
        self.communicator = communicator
        self.weight = weight
        self._exchange = exchange
        self._lazy: set[str] = set()
        self._once: list[chainer.Parameter] = []  # whose values a link could still throw away
        self._compared = False
        self._drift = DriftCheck(communicator, check_every)
        if actual_optimizer.target is not None:
            self._replicate()

    def setup(self, link: chainer.Link) -> MultiNodeOptimizer:
        """Set the model to train and make it equal on all ranks.

        Collective: all ranks call it. Parameters, persistent values and the optimizer's state
        are overwritten by rank 0's.
        """
        self.actual_optimizer.setup(link)
        self._replicate()
        return self

    def update(
        self,
        lossfun: Callable[..., chainer.Variable] | None = None,
        *args: Any,
        **kwds: Any,
    ) -> None:
        """Update the parameters by the mean gradient over the global batch.

        Collective: all ranks call it.

        Parameters
        ----------
        lossfun : callable, optional
            Called as ``lossfun(*args, **kwds)``; returns the *mean* loss over the local batch.
            Without it the gradients must have been computed.
        weight : float, optional
            This rank's share in the mean. Default: the number of samples in `args`, so that
            unequal local batches give the gradient of the mean over all their samples; equal
            shares if `args` do not tell, or without `lossfun`. The first array or list among
            `args` tells; if others have other lengths, these must be the same on all ranks.
            Given by all ranks or by none. A `weight` that is not a number is an argument of
            `lossfun`.

        Raises
        ------
        MismatchError
            The ranks' models, gradients or hyperparameters differ; or arguments of several
            lengths, without a `weight`; or, when they are compared, the updated parameters (on
            all ranks).
        ArgumentError
            Parameters were initialised differently on the ranks after `setup`, and the given
            gradients belong to those (on all ranks); or there was no `setup`.

        Notes
        -----
        What `lossfun` raises on one rank goes no further: the others wait for the update of this
        one. A program that catches it and goes on encloses the update in ``comm.together``.

        If a parameter gets its shape and first values in this forward pass, all ranks take
        those of the first rank that has them and run the forward pass again; what the first
        run changed in the links is taken back.
        """
        self._check_set_up()
        weight, source = None, ''
        if isinstance(kwds.get('weight'), Real):
            weight, source = kwds.pop('weight'), 'weight was given '
        if lossfun is None:
            self._check_given_gradients()
        else:
            self._backward(lossfun, args, kwds)
            if weight is None:
                weight, source = self._weigh(args, kwds)
        self._note_loss_scale(given=lossfun is None)
        self._once = [param for param in self._once if not free_if_used(param)]
        self._step(weight, source + self._facts())

    def serialize(self, serializer: Serializer) -> None:
        """Save or load the actual optimizer's state.

        After `setup` and after loading, the next `update` compares the ranks and, if parameters
        or state differ, makes all equal to rank 0; so all ranks must load.
        """
        self.actual_optimizer.serialize(serializer)
        self._compared = self._compared and not isinstance(serializer, Deserializer)

    def _step(self, weight: float | None, facts: str) -> None:
        """Exchange gradients and update; `facts` must be equal on all ranks."""
        self._exchange(self.target, weight, facts)
        self._apply()

    def _apply(self) -> None:
        """Update by the gradients that are there."""
        with same_noise(self.actual_optimizer, self.communicator):
            self.actual_optimizer.update(None)
        self._drift.after_update(self.target)

    def _backward(
        self,
        lossfun: Callable[..., chainer.Variable],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
    ) -> None:
        loss = self._forward(lossfun, args, kwds)
        if getattr(self.actual_optimizer, '_use_cleargrads', True):
            self.target.cleargrads()
        else:
            self.target.zerograds()
        loss.backward(loss_scale=self.actual_optimizer._loss_scale)

    def _weigh(self, args: tuple[Any, ...], kwds: dict[str, Any]) -> tuple[float | None, str]:
        """Return this rank's share, and what it comes from, which must be so on all ranks."""
        if self.weight is not None:
            return self.weight(*args, **kwds), 'weight was computed '
        return batch_size(args, kwds), other_sizes(args, kwds)

    def _forward(
        self,
        lossfun: Callable[..., chainer.Variable],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
    ) -> chainer.Variable:
        if self._replicate_what_differs():
            self._check_fresh(args, kwds)
        state = LinkState(self.target) if self._lazy else None
        loss = lossfun(*args, **kwds)
        if state is not None and self._replicate_late_parameters():
            state.restore()
            loss = lossfun(*args, **kwds)
        return loss

    def _check_fresh(self, args: tuple[Any, ...], kwds: dict[str, Any]) -> None:
        """Refuse arguments that were computed with values which are no longer there."""
        with self.communicator.together('update'):
            if any(getattr(x, 'creator_node', None) is not None for x in (*args, *kwds.values())):
                raise ArgumentError(
                    'update: the parameters differed between the ranks when an argument of the '
                    'loss function was computed from them. Compute it inside of the loss '
                    'function, or call update once before, or give layers their input size.'
                )

    def _replicate(self) -> None:
        replicate(self.actual_optimizer, self.communicator)
        self._note_lazy_parameters()
        self._drift.restart()
        self._compared = False  # values may be loaded into one rank's model before the first update

    def _replicate_what_differs(self) -> bool:
        """Make the ranks equal, if need be; tell if a parameter may have changed on any of them.

        After `setup` and after loading, all parameters and the state are compared; running
        statistics may differ. Later on only parameters that are still uninitialised matter.
        """
        if self._compared:
            return self._replicate_late_parameters()
        self._compared = True
        equal = is_replicated(self.actual_optimizer, self.communicator)
        if not equal:
            replicate(self.actual_optimizer, self.communicator)
        self._note_lazy_parameters()
        return not equal

    def _note_lazy_parameters(self) -> None:
        self._lazy = _uninitialized(self.target)
        for name, param in self.target.namedparams():
            if name in self._lazy:
                param.initialize = InitializeOnce(param)
                self._once.append(param)

    def _replicate_late_parameters(self) -> bool:
        """Replicate parameters that were initialised since the last time; tell if any changed.

        Costs one vote, and that only while some parameter is uninitialised.
        """
        if not self._lazy or self.communicator.agree(_uninitialized(self.target) == self._lazy):
            return False
        changed = replicate_parameters(self.target, self.communicator)
        self._lazy = _uninitialized(self.target)
        return changed

    def _check_given_gradients(self) -> None:
        """Make the ranks equal; but gradients that were given belong to the values before."""
        if self._compared and not self._lazy:
            return
        before = _values(self.target)
        if self._replicate_what_differs():
            after = _values(self.target)
            kept = all(after[name] == value for name, value in before.items())
            if not self.communicator.agree(kept):
                raise ArgumentError(
                    'update: the parameters differed between the ranks when the gradients were '
                    'computed. Initialise or load the model before setup(), or on all ranks '
                    'alike, or call update(lossfun, ...).'
                )

    def _note_loss_scale(self, given: bool) -> None:
        """Let parameters that this rank has not used know the scale of the others' gradients.

        Chainer notes it where backward comes by. Gradients that were given say it themselves.
        """
        params = list(self.target.params(include_uninit=False))
        used = [param for param in params if param.grad is not None]
        scale = used[0]._loss_scale if given and used else self.actual_optimizer._loss_scale
        for param in params:
            if not given or param.grad is None:
                param._loss_scale = scale

    def _check_set_up(self) -> None:
        if self.target is None:
            raise ArgumentError(
                'update: the optimizer has no model. Call setup(model) before, on all ranks.'
            )

    def _facts(self) -> str:
        """Return what must be equal on all ranks besides the gradients."""
        actual = self.actual_optimizer
        hyperparam, hooks = getattr(actual, 'hyperparam', ''), actual._hookable
        pairs = [*hooks._pre_update_hooks.items(), *hooks._post_update_hooks.items()]
        named = [f'{name}({_settings(hook)})' for name, hook in pairs]
        return (
            f'{hyperparam} t={actual.t} loss_scale={actual._loss_scale} hooks={named} '
            f'check_every={self._drift.period}'
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name in self._OWN:
            raise AttributeError(name)
        return getattr(self.actual_optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.actual_optimizer, name, value)


def _settings(hook: object) -> str:
    """Return the numbers and words of a hook, such as the rate of its decay.

    Those of users' own hooks mean who knows what: a rank, a file, seconds.
    """
    is_chainers = type(hook).__module__.startswith('chainer.')
    settings = getattr(hook, '__dict__', {}).items() if is_chainers else ()
    return ', '.join(f'{k}={v}' for k, v in settings if isinstance(v, (int, float, str)))


def _uninitialized(model: chainer.Link) -> set[str]:
    return {name for name, param in model.namedparams() if param.array is None}


def _values(model: chainer.Link) -> dict[str, int]:
    """Return a checksum of each initialised parameter."""
    return {
        name: zlib.crc32(cuda.to_cpu(param.array).tobytes())
        for name, param in model.namedparams(include_uninit=False)
    }
