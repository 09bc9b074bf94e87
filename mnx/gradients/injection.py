"""All-reduces in the graph: a plain ``loss.backward()`` leaves averaged gradients.

Every parameter gets two nodes in front of it, and backward passes them last::

    loss ◄── layer 2 ◄──────── Ready W2 ◄──┐
               ▲                           │
             layer 1 ◄──────── Ready W1 ◄──┼── AllReduceGradients ◄── W1 W2 (where grad is stored)
    F.sum(W1 ** 2) elsewhere ◄─────────────┘

``AllReduceGradients`` is one node for the model, made once. Its rank is below that of all others,
so Chainer comes to it when the whole gradients are there, from inside of layers or not. It is where
means are made, and all that is needed for them to be right.

``Ready`` makes it fast: a link's own parameters go through one while the link runs forward. Chainer
comes to it right after their last use, and the exchange may start. Its output counts as deep as the
link's input was, so all that uses it is deeper, and the node itself a little less deep.

Gradients that add up, loss scaling and ``retain_grad`` work as ever, since the parameter's own node
is still the leaf of the graph.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import chainer
from chainer.optimizer_hooks import GradientNoise
from chainer.variable import VariableNode

from mnx.arrays import Array
from mnx.errors import ArgumentError
from mnx.functions import allreduce
from mnx.gradients.noise import SameNoise
from mnx.gradients.overlap import OverlappedExchange

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Variable = Any  # chainer.Variable; Chainer has no types

BUCKET_BYTES = 4 * 1024 * 1024

_HOOK = 'mnx.inject_allreduce'


def inject_allreduce(
    model: chainer.Link,
    comm: Communicator,
    op: str = 'mean',
    *,
    bucket_bytes: int = BUCKET_BYTES,
) -> Injection:
    """Make every backward pass through `model` leave gradients averaged over all ranks.

    Collective: all ranks call it. Parameters are overwritten by rank 0's. From then on use any
    plain Chainer optimizer; no multi-node optimizer is needed.

    Parameters
    ----------
    model : chainer.Link
        All its parameters have values.
    comm : Communicator
    op : {'mean', 'sum'}
    bucket_bytes : int
        Gradients travel together until they have so many bytes.

    Returns
    -------
    Injection
        Its ``remove()`` takes it back.

    Raises
    ------
    ArgumentError
        A parameter has no values yet, the model is injected already, or an unknown `op` (on all
        ranks).
    MismatchError
        The ranks' parameters differ in name, shape or dtype (on all ranks); also in backward, where
        not all ranks are in it.

    Notes
    -----
    Backward becomes collective: all ranks do it equally often, and each of them reaches some
    parameter of the model; which ones may differ. Parameters that a rank did not use count as zeros
    there; those that no rank used keep the gradient they had. Each rank has an equal share in the
    mean, whatever its batch. Chainer's ``GradientNoise`` adds the same noise on all ranks.

    The exchange starts while backward runs, except on GPUs, for parameters used outside of their
    link, and in the first pass, in which ranks learn the order. With
    ``enable_double_backprop=True`` the means can be differentiated again.
    ``chainer.grad`` returns this rank's own gradients.

    References: Das et al. 2016 (arXiv:1602.06709).

    Examples
    --------
    >>> import chainer, mnx
    >>> model = chainer.links.Linear(3, 2)
    >>> with mnx.create_communicator('local') as comm:
    ...     injection = mnx.inject_allreduce(model, comm)
    ...     optimizer = chainer.optimizers.SGD().setup(model)
    """
    with comm.together('inject_allreduce') as meeting:
        meeting.bring(op, bucket_bytes)
        _check(model, op)
    comm.bcast_data(model)
    return Injection(model, OverlappedExchange(model, comm, op, bucket_bytes), comm, op)


def _check(model: chainer.Link, op: str) -> None:
    if op not in ('mean', 'sum'):
        raise ArgumentError(f"inject_allreduce: op is 'mean' or 'sum', but got {op!r}.")
    for name, param in sorted(model.namedparams()):
        if param.array is None:
            raise ArgumentError(
                f'inject_allreduce: the parameter {name} has no values yet. Give layers their '
                'input size, or call the model once on a batch.'
            )
        if isinstance(param.creator_node, AllReduceGradients):
            raise ArgumentError(
                f'inject_allreduce: the parameter {name} is injected already. '
                'Call it once for a model, or remove() the other one first.'
            )


class Injection:
    """What `inject_allreduce` returns.

    Attributes
    ----------
    exchange : OverlappedExchange
        Its ``started_early`` tells how many buckets the latest pass started before its end.
    """

    def __init__(
        self, model: chainer.Link, exchange: OverlappedExchange, comm: Communicator, op: str
    ) -> None:
        self.exchange = exchange
        self._leaves = [param.node for param in exchange.params]
        entries = AllReduceGradients(exchange, comm, op, self._end).connect(exchange.params)
        self._router = Router(exchange, entries)
        self._router.attach(model)
        self._router.reset()

    def _end(self) -> None:
        self._router.reset()

    def remove(self) -> None:
        """Make gradients the rank's own again. Collective."""
        self._router.detach()
        for param, leaf in zip(self.exchange.params, self._leaves, strict=True):
            param._node = leaf
        self.exchange.close()


class Entry(VariableNode):
    """The node by which a parameter enters the graph. No variable's own, so it has no gradient."""

    def retain_data(self) -> None:
        """Forget the array; asked for when the parameter has moved to another device."""
        self._data = None


class AllReduceGradients(chainer.FunctionNode):
    """The identity of all parameters of a model, the last node that backward comes to."""

    def __init__(self, exchange: OverlappedExchange, comm: Communicator, op: str, end: Any) -> None:
        self._exchange, self._comm, self._op, self._end = exchange, comm, op, end
        self.noise = SameNoise(comm)

    def connect(self, params: Sequence[chainer.Parameter]) -> list[Entry]:
        """Return a node for each parameter, behind which is its own one."""
        with chainer.force_backprop_mode():
            outputs = self.apply(tuple(params))
        entries = [Entry(output, param.name) for output, param in zip(outputs, params, strict=True)]
        self.rank = -float('inf')
        for entry in entries:
            entry.creator_node = self
            entry._rank = 0  # as a leaf
        self.outputs = tuple(map(weakref.ref, entries))
        return entries

    def forward(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        return inputs

    def backward(
        self, indexes: Sequence[int], gys: Sequence[Variable | None]
    ) -> tuple[Variable | None, ...]:
        try:
            if chainer.config.enable_backprop:
                return self._differentiable(gys)
            totals = [None if gy is None else gy.array for gy in gys]
            means = self._exchange.finish(totals)
            return tuple(None if g is None else chainer.Variable(g) for g in means)
        finally:
            self._end()

    def _differentiable(self, gys: Sequence[Variable | None]) -> tuple[Variable | None, ...]:
        used, _, _ = self._exchange.agree([None if gy is None else gy.array for gy in gys])
        return tuple(
            allreduce(self._comm, _or_zeros(gy, param), self._op) if i in used else None
            for i, (gy, param) in enumerate(zip(gys, self._exchange.params, strict=True))
        )

    def unchain(self) -> None:
        """Stay: this node belongs to the parameters, not to a graph that is thrown away."""


def _or_zeros(gy: Variable | None, param: chainer.Parameter) -> Variable:
    return chainer.Variable(param.xp.zeros_like(param.array)) if gy is None else gy


class Ready(chainer.FunctionNode):
    """The identity of one parameter; in backward it tells that the gradient is there."""

    def __init__(self, index: int, router: Router) -> None:
        self._index, self._router = index, router

    def forward(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        return inputs

    def backward(self, indexes: Sequence[int], gys: Sequence[Variable]) -> Sequence[Variable]:
        if not chainer.config.enable_backprop:
            self._router.exchange.ready(self._index, gys[0].array)
        return gys

    def unchain(self) -> None:
        super().unchain()
        self._router.reset()  # what comes next needs nodes that lead to the parameters


class Router(chainer.LinkHook):
    """Leads the parameters of a link through `Ready` while the link runs forward."""

    name = _HOOK

    def __init__(self, exchange: OverlappedExchange, entries: Sequence[Entry]) -> None:
        self.exchange = exchange
        self._entries = entries
        self._routes: dict[int, VariableNode] = {}
        self._links: list[chainer.Link] = []
        self._members: dict[int, list[int]] = {}

    def attach(self, model: chainer.Link) -> None:
        """Hook the links that have parameters of their own."""
        index_of = {id(param): i for i, param in enumerate(self.exchange.params)}
        self._links = [link for link in model.links() if link._params]
        for link in self._links:
            own = (link.__dict__[name] for name in sorted(link._params))
            self._members[id(link)] = [index_of[id(param)] for param in own]
            link.local_link_hooks.pop(_HOOK, None)  # that of a copy, which does nothing
            link.add_hook(self)

    def detach(self) -> None:
        """Take the hooks away."""
        while self._links:
            self._links.pop().delete_hook(_HOOK)

    def reset(self) -> None:
        """Forget all routes: the parameters are to be used in a new graph."""
        self._routes.clear()
        for param, entry in zip(self.exchange.params, self._entries, strict=True):
            param._node = entry

    def forward_preprocess(self, call: Any) -> None:
        if not chainer.config.enable_backprop:
            return
        rank = max((x.rank for x in _variables((call.args, call.kwargs))), default=0)
        for i in self._members.get(id(call.link), ()):
            if self.exchange.wants(i):
                self.exchange.params[i]._node = self._route(i, rank)

    def forward_postprocess(self, call: Any) -> None:
        for i in self._members.get(id(call.link), ()):
            self.exchange.params[i]._node = self._entries[i]

    def _route(self, index: int, rank: int) -> VariableNode:
        """Return the node that stands for a parameter in all links of one forward pass."""
        if index not in self._routes:
            param, ready = self.exchange.params[index], Ready(index, self)
            param._node = self._entries[index]
            (output,) = ready.apply((param,))
            self._routes[index] = output.node
            ready.rank, output.node._rank = rank - 0.5, rank
        return self._routes[index]

    def __reduce__(self) -> Any:
        """Copies of a model are not injected: a hook that does nothing takes this one's place."""
        return chainer.LinkHook, ()


def _variables(x: Any) -> Iterator[Variable]:
    """Yield the variables in nested arguments of a link."""
    if isinstance(x, chainer.Variable):
        yield x
    elif isinstance(x, dict):
        yield from _variables(tuple(x.values()))
    elif isinstance(x, (tuple, list)):
        for item in x:
            yield from _variables(item)


def noises_of(model: chainer.Link) -> dict[str, SameNoise]:
    """Return the noise of each injected part of `model`, by the name of its first parameter."""
    found: dict[int, tuple[str, SameNoise]] = {}
    for name, param in sorted(model.namedparams(), key=operator.itemgetter(0)):
        if isinstance(node := param.creator_node, AllReduceGradients):
            found.setdefault(id(node), (name, node.noise))
    return dict(found.values())


_add_noise_as_chainer = GradientNoise.__call__


def _add_same_noise(self: GradientNoise, rule: Any, param: chainer.Parameter) -> None:
    """Keep the copies of an injected model equal."""
    node = param.creator_node
    with node.noise.drawn(param.xp) if isinstance(node, AllReduceGradients) else nullcontext():
        _add_noise_as_chainer(self, rule, param)


GradientNoise.__call__ = _add_same_noise
