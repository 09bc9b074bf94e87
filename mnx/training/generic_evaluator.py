"""An evaluation that is not a mean: results of all ranks' batches, put together on one rank.

rank 0   batch 0   batch 1   batch 2        calc_local on each
rank 1   batch 0   batch 1
                             ↓              8 batches a message
root     aggregate([r0 b0, r1 b0, r0 b1, r1 b1, r0 b2])
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, Any

import chainer
from chainer.dataset import Iterator as DatasetIterator
from chainer.dataset import concat_examples, convert
from chainer.training import PRIORITY_WRITER, Extension

from mnx.communicators import create_communicator
from mnx.errors import ArgumentError, DtypeError, explain
from mnx.training.evaluation_iterator import EvaluationIterator

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

_BATCHES_A_MESSAGE = 8


class GenericMultiNodeEvaluator(Extension, ABC):
    """Base of evaluators that need the results of all batches, such as a BLEU score.

    Override `calc_local` and `aggregate`.

    Parameters
    ----------
    comm : CommunicatorBase or None
        None: this process alone.
    iterator : chainer.dataset.Iterator or dict
        Of this rank's samples, of one epoch; the one named 'main' is read. Ranks may have
        different numbers of batches. Examples that `scatter_dataset` gave to two ranks are
        served once.
    target : chainer.Link or dict
        For `calc_local`, by `get_target`.
    device : device specifier, optional
    converter : callable
        Makes the arguments of `calc_local` from a batch, as in Chainer's ``Evaluator``.
    root : int
        The rank that aggregates.
    progress_hook : callable, optional
        Called on the root with each of its batches when it is done.
    """

    trigger = 1, 'epoch'
    default_name = 'validation'
    priority = PRIORITY_WRITER
    name: str | None = None

    def __init__(
        self,
        comm: CommunicatorBase | None,
        iterator: Any,
        target: Any,
        device: Any = None,
        converter: Callable[..., Any] = concat_examples,
        root: int = 0,
        *,
        progress_hook: Callable[[Any], Any] | None = None,
    ) -> None:
        self.comm = create_communicator('local') if comm is None else comm
        self._iterators = {'main': iterator} if _is_one(iterator) else dict(iterator)
        self._targets = {'main': target} if isinstance(target, chainer.Link) else dict(target)
        self.device = None if device is None else chainer.get_device(device)
        self.converter = converter
        self.root = _checked_root(self.comm, root)
        self.progress_hook = progress_hook

    @abstractmethod
    def calc_local(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of one batch: anything that can be pickled, but not None.

        Called on each rank for each of its batches, in test mode and without backprop. What is
        reported meanwhile is dropped.
        """

    @abstractmethod
    def aggregate(self, results: list[Any]) -> Any:
        """Return the result of all batches; called on the root.

        Parameters
        ----------
        results : list
            Batch 0 of rank 0, of rank 1, ..., then batch 1 of rank 0, and so on.
        """

    def __call__(self, trainer: Any = None) -> Any:
        """Evaluate. Collective: all ranks call it, and all raise if one fails.

        Returns
        -------
        object
            What `aggregate` returns, on the root; None elsewhere.
        """
        results = self._gather_results()
        with self.comm.together('GenericMultiNodeEvaluator'):
            return self.aggregate(results) if self.comm.rank == self.root else None

    def get_iterator(self, name: str) -> Any:
        """Return the iterator of this name."""
        return self._iterators[name]

    def get_target(self, name: str) -> Any:
        """Return the link of this name."""
        return self._targets[name]

    def finalize(self) -> None:
        """Finalise the iterators."""
        for iterator in self._iterators.values():
            iterator.finalize()

    def _gather_results(self) -> list[Any]:
        results: list[Any] = []
        mine, have_all_ended = self._local_results(), False
        while not have_all_ended:
            with self.comm.together('GenericMultiNodeEvaluator'), _testing(self._targets):
                block = list(islice(mine, _BATCHES_A_MESSAGE))
            blocks = self.comm.gather_obj(block, root=self.root)
            results += _in_turn(blocks or [])
            have_all_ended = self.comm.agree(len(block) < _BATCHES_A_MESSAGE)
        return results

    def _local_results(self) -> Iterator[Any]:
        for batch in _from_the_start(EvaluationIterator(self._iterators['main'])):
            arguments = convert._call_converter(self.converter, batch, self.device)
            result = _call(self.calc_local, arguments)
            if result is None:
                raise DtypeError(
                    f'{type(self).__name__}: calc_local gave no result, expected an object but '
                    'got None. Let it return what aggregate needs of a batch.'
                )
            yield result
            if self.progress_hook is not None and self.comm.rank == self.root:
                self.progress_hook(batch)


@contextmanager
def _testing(targets: dict[str, chainer.Link]) -> Iterator[None]:
    """Test mode, without backprop, and with what is reported dropped."""
    reporter = chainer.Reporter()
    for name, target in targets.items():
        reporter.add_observer(name, target)
        reporter.add_observers(name, target.namedlinks(skipself=True))
    with reporter, chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


def _in_turn(blocks: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the first of each block, then the second of each, and so on.

    >>> _in_turn([['a0', 'a1'], [], ['c0']])
    ['a0', 'c0', 'a1']
    """
    return [result for result in chain(*zip_longest(*blocks)) if result is not None]


def _from_the_start(iterator: EvaluationIterator) -> EvaluationIterator:
    if not hasattr(iterator, 'reset'):
        return copy.copy(iterator)
    iterator.reset()
    return iterator


def _call(function: Callable[..., Any], arguments: Any) -> Any:
    if isinstance(arguments, tuple):
        return function(*arguments)
    if isinstance(arguments, dict):
        return function(**arguments)
    return function(arguments)


def _is_one(iterator: Any) -> bool:
    return isinstance(iterator, DatasetIterator) or hasattr(iterator, '__next__')


def _checked_root(comm: CommunicatorBase, root: int) -> int:
    if 0 <= root < comm.size:
        return root
    raise ArgumentError(
        explain(
            'GenericMultiNodeEvaluator',
            'root is not a rank',
            f'0 to {comm.size - 1}',
            root,
            rank=comm.rank,
            size=comm.size,
            advice='Name the rank that shall aggregate',
        )
    )
