"""A plain Chainer model, split over the ranks.

1. All ranks take rank 0's parameters and persistent values.
2. In a Sequential, two layers with nothing but elementwise functions between them become a pair:
   the first leaves its output split, the second takes it so. One all-reduce instead of a gather
   and one instead of a sum are all that moves.
3. Any other layer gathers its output: whatever its neighbours are, they see the whole.
4. What cannot be split stays as it is, and is computed by every rank alike.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import chainer
import chainer.functions as F
import chainer.links as L
from chainer import initializers
from chainer.links.rnn.lstm import LSTMBase

from mnx.errors import ArgumentError
from mnx.links.parallel_convolution import ParallelConvolution2D
from mnx.links.parallel_linear import ParallelLinear
from mnx.links.split_parameter import SplitParameter
from mnx.optimizers.replicate import replicate_model

if TYPE_CHECKING:
    from mnx.communicators import Communicator

ELEMENTWISE = frozenset(
    {
        F.absolute,
        F.clipped_relu,
        F.elu,
        F.exp,
        F.hard_sigmoid,
        F.identity,
        F.leaky_relu,
        F.relu,
        F.relu6,
        F.selu,
        F.sigmoid,
        F.softplus,
        F.tanh,
    }
)


@dataclass(frozen=True)
class Role:
    """How one link is split."""

    partition: str = 'output'
    gather_output: bool | None = None
    input_is_split: bool = False


ALONE = Role()
FIRST_OF_PAIR = Role('output', gather_output=False)
SECOND_OF_PAIR = Role('input', input_is_split=True)


def parallelize(model: chainer.Link, comm: Communicator) -> chainer.Link:
    """Split the layers of a Chainer model over the ranks of `comm`; keep its parameters.

    Collective: all ranks call it, with the same model, before ``optimizer.setup``.

    Parameters
    ----------
    model : chainer.Link
        Chain, ChainList, Sequential, in any depth, is changed in place. Replaced are
        ``L.Linear``, and ``L.Convolution2D`` of one group whose channels are enough for all
        ranks. Left alone are subclasses of them, links with hooks, parameters that several
        links share, links that some link also holds elsewhere, as in a list of its own, and the
        layers of an LSTM that does not know its input size yet.
    comm : Communicator

    Returns
    -------
    chainer.Link
        `model`; or, if it is a layer itself, what replaces it. Names of parameters are as before.

    Raises
    ------
    ArgumentError
        An optimizer has been set up; there are parallel links already (on all ranks).

    Examples
    --------
    >>> import mnx
    >>> model = chainer.Sequential(L.Linear(4, 6), F.relu, L.Linear(6, 2))
    >>> model = parallelize(model, mnx.create_communicator('local'))
    >>> [link.partition for link in model.children()]
    ['output', 'input']
    """
    with comm.together('parallelize') as meeting:
        _check_no_optimizer(model)
        _check_whole(model)
        meeting.bring(*(f'{name}:{type(link).__name__}' for name, link in _links(model)))
    replicate_model(model, comm)
    return _Replacement(model, comm).of(model)


def _aliases(model: chainer.Link) -> Iterator[int]:
    """Yield the ids of links that are held beside the places where Chainer keeps children."""
    for link in _distinct(model):
        children = {'_children', '_layers', *getattr(link, '_children', ())}
        for name, value in vars(link).items():
            if name not in children:
                yield from map(id, _held_in(value))


def _filled_by_others(model: chainer.Link) -> Iterator[int]:
    """Yield the ids of links without values yet, of which an LSTM fills each quarter by itself."""
    for link in _distinct(model):
        if isinstance(link, LSTMBase) and link.upward.W.array is None:
            yield from map(id, link.children())


def _held_in(value: object) -> Iterator[chainer.Link]:
    if isinstance(value, chainer.Link):
        yield value
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _held_in(item)
    elif isinstance(value, dict):
        yield from _held_in(list(value.values()))


class _Replacement:
    """Walks through a model, in an order that all ranks share, and replaces each link once."""

    def __init__(self, model: chainer.Link, comm: Communicator) -> None:
        self._comm = comm
        self._uses = Counter(id(p) for link in _distinct(model) for p in _own_params(link))
        self._places = Counter(id(link) for link in _places(model))
        self._left_alone = {*_aliases(model), *_filled_by_others(model)}
        self._seen: list[chainer.Link] = []  # they live, so that each has an id of its own
        self._done: dict[int, chainer.Link] = {}

    def of(self, link: chainer.Link, role: Role = ALONE) -> chainer.Link:
        """Return what stands in the place of `link`."""
        if id(link) not in self._done:
            self._seen.append(link)
            self._done[id(link)] = self._new(link, role)
        return self._done[id(link)]

    def _new(self, link: chainer.Link, role: Role) -> chainer.Link:
        if self._can_be_split(link):
            return CONVERTERS[type(link)](link, self._comm, role)
        if isinstance(link, chainer.Sequential):
            self._inside_sequential(link)
        elif isinstance(link, chainer.ChainList):
            for i, child in enumerate(list(link)):
                link[i] = self.of(child)
        elif isinstance(link, chainer.Chain):
            self._inside_chain(link)
        return link

    def _inside_chain(self, chain: chainer.Chain) -> None:
        for name in sorted(chain._children):
            child = getattr(chain, name)
            new = self.of(child)
            if new is not child:
                delattr(chain, name)
                chain.add_link(name, new)

    def _inside_sequential(self, sequence: chainer.Sequential) -> None:
        # one with a forward of its own may do anything between its layers
        is_plain = type(sequence).forward is chainer.Sequential.forward
        roles = dict(self._pairs(list(sequence))) if is_plain else {}
        for i, layer in enumerate(list(sequence)):
            if isinstance(layer, chainer.Link):
                _put(sequence, i, self.of(layer, roles.get(i, ALONE)))

    def _pairs(self, layers: list[Any]) -> Iterator[tuple[int, Role]]:
        """Yield the positions of layers in pairs, and their roles."""
        places = [i for i, layer in enumerate(layers) if not is_elementwise(layer)]
        taken = -1
        for i, j in itertools.pairwise(places):
            if i > taken and self._is_pair(layers[i], layers[j]):
                taken = j
                yield i, FIRST_OF_PAIR
                yield j, SECOND_OF_PAIR

    def _is_pair(self, first: Any, second: Any) -> bool:
        return (
            type(first) is type(second)
            and all(self._can_be_split(x) and self._places[id(x)] == 1 for x in (first, second))
            and self._takes_parts(first, second)
        )

    def _takes_parts(self, first: Any, second: Any) -> bool:
        if isinstance(first, L.Linear):
            return second.in_size in (None, first.out_size)
        return second.in_channels in (None, first.out_channels)

    def _can_be_split(self, link: Any) -> bool:
        if type(link) not in CONVERTERS or link.local_link_hooks or id(link) in self._left_alone:
            return False
        if any(self._uses[id(p)] > 1 for p in _own_params(link)):
            return False
        if isinstance(link, L.Convolution2D):
            return bool(link.groups == 1 and link.out_channels >= self._comm.size)
        return True


def _put(sequence: chainer.Sequential, i: int, new: chainer.Link) -> None:
    """Replace the i-th layer; Chainer's own assignment loses track of names."""
    old = sequence[i]
    new.name = old.name
    sequence._layers[i] = new
    sequence._children[:] = [new if child is old else child for child in sequence._children]


def is_elementwise(layer: Any) -> bool:
    """Tell whether a layer of a Sequential is a function that treats every number by itself."""
    return any(layer is function for function in ELEMENTWISE)


def _linear(link: L.Linear, comm: Communicator, role: Role) -> ParallelLinear:
    new = ParallelLinear(
        link.in_size,
        link.out_size,
        comm,
        role.partition,
        role.gather_output,
        input_is_split=role.input_is_split,
        **_values(link),
    )
    new.to_device(link.device)
    return new


def _convolution(link: L.Convolution2D, comm: Communicator, role: Role) -> ParallelConvolution2D:
    new = ParallelConvolution2D(
        link.in_channels,
        link.out_channels,
        link.ksize,
        comm,
        role.partition,
        role.gather_output,
        input_is_split=role.input_is_split,
        stride=link.stride,
        pad=link.pad,
        dilate=link.dilate,
        **_values(link),
    )
    new.to_device(link.device)
    return new


CONVERTERS: dict[type, Callable[[Any, Any, Role], chainer.Link]] = {
    L.Linear: _linear,
    L.Convolution2D: _convolution,
}


def _values(link: Any) -> dict[str, Any]:
    """Return arguments that make a link with the parameters of `link`, or its initialisers."""
    return {
        'nobias': link.b is None,
        'initialW': _value(link.W),
        'initial_bias': None if link.b is None else _value(link.b),
    }


def _value(param: chainer.Parameter) -> Any:
    if param.array is None:
        return param.initializer
    array = chainer.backends.cuda.to_cpu(param.array)
    return initializers.Constant(array, dtype=array.dtype)


def _check_no_optimizer(model: chainer.Link) -> None:
    if any(getattr(p, 'update_rule', None) is not None for p in model.params()):
        raise ArgumentError(
            'parallelize: an optimizer has been set up for this model, whose state would not fit '
            'the parts. Call parallelize before optimizer.setup(model).'
        )


def _check_whole(model: chainer.Link) -> None:
    if any(isinstance(p, SplitParameter) for p in model.params()):
        raise ArgumentError(
            'parallelize: the model has parallel links already, expected a model of plain Chainer. '
            'Call parallelize once, or for those of its children that are whole.'
        )


def _links(model: chainer.Link) -> list[tuple[str, chainer.Link]]:
    return sorted(model.namedlinks(), key=lambda pair: pair[0])


def _places(link: chainer.Link) -> Iterator[chainer.Link]:
    """Yield every link at every place it stands in."""
    yield link
    if isinstance(link, (chainer.Chain, chainer.ChainList)):
        for child in link.children():
            yield from _places(child)


def _distinct(model: chainer.Link) -> list[chainer.Link]:
    return list({id(link): link for link in _places(model)}.values())


def _own_params(link: chainer.Link) -> list[chainer.Parameter]:
    return [getattr(link, name) for name in link._params]
