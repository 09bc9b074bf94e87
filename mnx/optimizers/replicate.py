"""Make a model and its optimizer equal on all ranks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.backends import cuda
from chainer.serializers import DictionarySerializer, NpzDeserializer

from mnx.arrays import is_array
from mnx.errors import MismatchError
from mnx.optimizers import masters

if TYPE_CHECKING:
    from mnx.communicators import Communicator

Layout = tuple[tuple[int, ...], str]

_MASTER = 'mnx/master:'


def replicate(optimizer: chainer.Optimizer, comm: Communicator) -> None:
    """Overwrite parameters, persistent values and optimizer state by rank 0's. Collective."""
    replicate_model(optimizer.target, comm)
    _replicate_state(optimizer, comm)


def replicate_model(model: chainer.Link, comm: Communicator) -> None:
    """Overwrite parameters and persistent values by rank 0's. Collective."""
    replicate_parameters(model, comm)
    _replicate_persistents(model, comm)


def is_replicated(optimizer: chainer.Optimizer, comm: Communicator) -> bool:
    """Tell whether parameters and optimizer state are equal on all ranks. Collective.

    Persistent values are not looked at: running statistics may differ between ranks.
    """
    arrays = {name: p.array for name, p in optimizer.target.namedparams() if p.array is not None}
    digest = zlib.crc32(
        repr(
            [
                (name, zlib.crc32(cuda.to_cpu(array).tobytes()))
                for values in (arrays, _state(optimizer))
                for name, array in sorted(values.items())
            ]
        ).encode()
    )
    return len(set(comm.allgather_obj(digest))) == 1


def replicate_parameters(model: chainer.Link, comm: Communicator) -> bool:
    """Give every rank the parameters of the first rank that has them. Collective.

    A parameter that only some ranks have initialised is initialised on the others too.

    Returns
    -------
    bool
        Whether a value may have changed, on any rank.

    Raises
    ------
    MismatchError
        The ranks' models have different parameters, or different shapes of one.
    """
    params = dict(sorted(model.namedparams()))
    layouts = comm.allgather_obj({name: _layout(p) for name, p in params.items()})
    owners = {name: _owner(name, layouts) for name in params}
    with comm.together('replicate_parameters'):
        for name, param in params.items():
            _fit(name, param, owners[name], layouts)
    for root in sorted({owner for owner in owners.values() if owner is not None}):
        owned = [(name, params[name].array) for name, owner in owners.items() if owner == root]
        comm.bcast_into(owned, root)
    return comm.size > 1 and any(owner is not None for owner in owners.values())


class InitializeOnce:
    """Stands for ``param.initialize``: does nothing if the parameter has that shape already.

    A lazily sized BatchNormalization initialises its parameters whenever it finds itself without
    running statistics. On a rank that got the parameters from another one, or is sent through the
    forward pass again, that would throw their values away.
    """

    def __init__(self, param: chainer.Parameter) -> None:
        self._param = param

    def __call__(self, shape: tuple[int, ...]) -> None:
        """Initialise the parameter, unless it has this shape."""
        if self._param.array is None or self._param.shape != tuple(shape):
            chainer.Parameter.initialize(self._param, shape)


def free_if_used(param: chainer.Parameter) -> bool:
    """Give `param` its own ``initialize`` back if this rank has used it; tell if it has it.

    To be asked between the backward pass and the exchange, which gives zeros to all others.
    """
    if param.array is None or param.grad is None:
        return False
    param.__dict__.pop('initialize', None)
    return True


def _layout(param: chainer.Parameter) -> Layout | None:
    if param.array is None:
        return None
    return param.shape, param.dtype.str + getattr(param, 'place', '')  # see mnx.links


def _owner(name: str, layouts: list[dict[str, Layout | None]]) -> int | None:
    """Return the first rank that has initialised the parameter."""
    return next((r for r, layout in enumerate(layouts) if layout.get(name) is not None), None)


def _fit(
    name: str,
    param: chainer.Parameter,
    owner: int | None,
    layouts: list[dict[str, Layout | None]],
) -> None:
    """Initialise `param` if another rank has; complain if the ranks' layouts differ."""
    missing = [r for r, layout in enumerate(layouts) if name not in layout]
    if missing:
        raise MismatchError(
            f'replicate_parameters: parameter {name} is not in the model of rank(s) {missing}. '
            'All ranks must build the same model.'
        )
    if owner is None:
        return
    expected = layouts[owner][name]
    assert expected is not None
    if param.array is None:
        param.initialize(expected[0])
    if _layout(param) != expected:
        raise MismatchError(
            f'replicate_parameters: parameter {name} has shape and dtype {expected} on rank '
            f'{owner} but {_layout(param)} elsewhere. All ranks must build the same model.'
        )


def _replicate_persistents(model: chainer.Link, comm: Communicator) -> None:
    values = comm.bcast_obj(dict(_persistents(model)))
    for path, link in _links(model):
        for name in sorted(link._persistent):
            received = values.get((path, name))
            own = getattr(link, name)
            if is_array(received) and is_array(own) and own.shape == received.shape:
                own[...] = link.xp.asarray(received)
            elif (path, name) in values:
                setattr(link, name, received)


def _persistents(model: chainer.Link) -> Iterator[tuple[tuple[str, str], Any]]:
    for path, link in _links(model):
        for name in sorted(link._persistent):
            value = getattr(link, name)
            yield (path, name), cuda.to_cpu(value) if is_array(value) else value


def _links(model: chainer.Link) -> list[tuple[str, chainer.Link]]:
    return sorted(model.namedlinks(), key=lambda pair: pair[0])


def _replicate_state(optimizer: chainer.Optimizer, comm: Communicator) -> None:
    state = _state(optimizer) if comm.rank == 0 else None
    received = comm.bcast_obj(state)
    if comm.rank != 0:
        for param in optimizer.target.params():
            if param.update_rule is not None:
                param.update_rule._state = None  # what rank 0 lacks must not stay
        optimizer.serialize(NpzDeserializer(received, strict=False))
        found = {k.removeprefix(_MASTER): v for k, v in received.items() if k.startswith(_MASTER)}
        masters.restore(optimizer, found)


def _state(optimizer: chainer.Optimizer) -> dict[str, Any]:
    serializer = DictionarySerializer()
    optimizer.serialize(serializer)
    state = {name: np.asarray(value) for name, value in serializer.target.items()}
    return state | {_MASTER + name: copy for name, copy in masters.capture(optimizer).items()}
