"""Evaluate a model on all ranks' samples.

Chainer's Evaluator averages the batches' means, whatever the batches' sizes. Over ranks that
goes further wrong, so the exact mean is built from sums::

    rank 0   samples 0 1 2     sum 3, weight 3 ─┐
    rank 1   samples 3 4       sum 7, weight 2 ─┴─►  10 / 5 = 2, the same bits on every rank
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import chainer
from chainer.dataset import convert
from chainer.training.extensions import Evaluator
from chainer.training.extensions.evaluator import _IteratorProgressBar

from mnx.errors import ArgumentError
from mnx.training.evaluation_iterator import EvaluationIterator
from mnx.training.weighted_sums import RankResult, WeightedSums, combine

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


def create_multi_node_evaluator(
    actual_evaluator: Evaluator, communicator: CommunicatorBase
) -> MultiNodeEvaluator:
    """Wrap an evaluator so that it reports means over the samples of all ranks.

    Each value is weighted by the number of samples in its batch, so the result does not depend
    on how the samples are spread over ranks and batches. Examples that `scatter_dataset` gave to
    two ranks count once.

    Parameters
    ----------
    actual_evaluator : chainer.training.extensions.Evaluator
        Any evaluator. If it has an ``evaluate`` of its own, that is called as it is on each rank,
        and its means are weighted by the number of samples its main iterator has served (if none,
        because it reads the data set itself, by the length of that).
        It is not changed. With ``progress_bar=True``, rank 0 draws the bar of its own samples.
    communicator : CommunicatorBase

    Returns
    -------
    MultiNodeEvaluator
        An evaluator of the same name, trigger and priority. Calling it is collective. An
        evaluator that is one already, over the same communicator, is returned as it is.

    Raises
    ------
    ArgumentError
        Not an evaluator, or one that was wrapped for another communicator.

    Examples
    --------
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> model = chainer.links.Classifier(chainer.links.Linear(2, 3))
    >>> samples = chainer.iterators.SerialIterator([], 10, repeat=False, shuffle=False)
    >>> evaluator = mnx.create_multi_node_evaluator(
    ...     chainer.training.extensions.Evaluator(samples, model), comm)
    >>> evaluator()
    {}
    """
    if not isinstance(actual_evaluator, Evaluator):
        raise ArgumentError(
            'create_multi_node_evaluator: expected a chainer.training.extensions.Evaluator but '
            f'got {type(actual_evaluator).__name__}. Derive your class from Evaluator.'
        )
    if isinstance(actual_evaluator, MultiNodeEvaluator):
        return _wrapped_before(actual_evaluator, communicator)
    return MultiNodeEvaluator(actual_evaluator, communicator)


def _wrapped_before(evaluator: MultiNodeEvaluator, comm: CommunicatorBase) -> MultiNodeEvaluator:
    if evaluator.communicator is not comm:
        raise ArgumentError(
            'create_multi_node_evaluator: the evaluator averages over the ranks of '
            f'{evaluator.communicator!r} already, expected a plain one to average over those of '
            f'{comm!r}. Pass its actual_evaluator.'
        )
    return evaluator


class MultiNodeEvaluator(Evaluator):
    """What `create_multi_node_evaluator` returns.

    Reads and writes of any other attribute (``eval_hook``, ``device``, those of your own class) go
    to the actual evaluator.

    Attributes
    ----------
    actual_evaluator : chainer.training.extensions.Evaluator
    communicator : CommunicatorBase
    """

    _OWN = frozenset(
        {'actual_evaluator', 'communicator', 'trigger', 'priority', 'default_name', 'name'}
    )

    def __init__(self, actual_evaluator: Evaluator, communicator: CommunicatorBase) -> None:
        self.actual_evaluator = actual_evaluator
        self.communicator = communicator
        self.trigger = actual_evaluator.trigger
        self.priority = actual_evaluator.priority
        self.default_name = actual_evaluator.default_name

    @property
    def name(self) -> str | None:
        """The name by which the trainer knows it; a prefix of the values' names."""
        name: str | None = self.actual_evaluator.name
        return name

    @name.setter
    def name(self, name: str | None) -> None:
        self.actual_evaluator.name = name

    def __call__(self, trainer: Any = None) -> dict[str, Any]:
        """Evaluate and report. Collective: all ranks call it and get the same result."""
        result = self.evaluate(trainer)
        chainer.report(result)
        return result

    def evaluate(self, trainer: Any = None) -> dict[str, Any]:
        """Return the mean of each reported value over all ranks' samples.

        Collective: all ranks call it.

        Raises
        ------
        MismatchError
            Ranks with samples report entirely different values (on all ranks).
        """
        with self.communicator.together('evaluate'):
            mine = self._evaluate_own_samples(trainer)
        return combine(self.communicator.allgather_obj(mine))

    def _evaluate_own_samples(self, trainer: Any) -> RankResult:
        evaluator, sums = self.actual_evaluator, WeightedSums()
        with _prepared(evaluator, draws=self.communicator.rank == 0) as iterators:
            if _is_chainers_own(evaluator):
                _run(evaluator, sums)
                return RankResult(iterators['main'].n_served, sums.to_host())
            with chainer.Reporter():  # it reports this rank's means: for nobody to see
                means = evaluator(trainer)
            n_served = _n_samples(iterators)
            sums.add_means(means if n_served else {}, n_served)
            return RankResult(n_served, sums.to_host())

    # The rest of Evaluator, as the actual one does it.

    def get_iterator(self, name: str) -> Any:
        """Return the actual evaluator's iterator of this name."""
        return self.actual_evaluator.get_iterator(name)

    def get_all_iterators(self) -> dict[str, Any]:
        """Return the actual evaluator's iterators."""
        return dict(self.actual_evaluator.get_all_iterators())

    def get_target(self, name: str) -> Any:
        """Return the actual evaluator's link of this name."""
        return self.actual_evaluator.get_target(name)

    def get_all_targets(self) -> dict[str, Any]:
        """Return the actual evaluator's links."""
        return dict(self.actual_evaluator.get_all_targets())

    def initialize(self, trainer: Any) -> None:
        """Initialise the actual evaluator."""
        self.actual_evaluator.initialize(trainer)

    def on_error(self, trainer: Any, exc: Exception, tb: Any) -> None:
        """Pass an error of the training loop to the actual evaluator."""
        self.actual_evaluator.on_error(trainer, exc, tb)

    def finalize(self) -> None:
        """Finalise the actual evaluator and its iterators."""
        self.actual_evaluator.finalize()

    def serialize(self, serializer: Any) -> None:
        """Save or load the actual evaluator's state."""
        self.actual_evaluator.serialize(serializer)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name in self._OWN:
            raise AttributeError(name)
        return getattr(self.actual_evaluator, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.actual_evaluator, name, value)


def _is_chainers_own(evaluator: Evaluator) -> bool:
    cls = type(evaluator)
    return cls.evaluate is Evaluator.evaluate and cls.__call__ is Evaluator.__call__


def _n_samples(iterators: dict[str, EvaluationIterator]) -> int:
    """Return how many samples were read, or how many there are if the data were read otherwise."""
    main = [iterators['main']] if 'main' in iterators else list(iterators.values())
    return sum(it.n_served for it in main) or sum(it.n_owned for it in main)


@contextmanager
def _prepared(evaluator: Evaluator, *, draws: bool) -> Iterator[dict[str, EvaluationIterator]]:
    """For one evaluation: count what is read, and draw a progress bar on one rank only."""
    actual, bar = evaluator._iterators, evaluator._progress_bar
    evaluator._iterators = {name: EvaluationIterator(it) for name, it in actual.items()}
    evaluator._progress_bar = bar and draws
    try:
        yield evaluator._iterators
    finally:
        evaluator._iterators, evaluator._progress_bar = actual, bar


def _run(evaluator: Evaluator, sums: WeightedSums) -> None:
    """Do what Chainer's Evaluator does, with each batch weighted by its size."""
    eval_func = evaluator.eval_func or evaluator.get_target('main')
    if evaluator.eval_hook:
        evaluator.eval_hook(evaluator)
    iterator = _from_the_start(evaluator.get_iterator('main'))
    with (
        _reporter(evaluator) as reporter,
        _progress(evaluator, iterator) as show,
        chainer.using_config('train', False),
    ):
        for batch in iterator:
            observation: dict[str, Any] = {}
            with reporter.scope(observation), chainer.no_backprop_mode():
                _call(
                    eval_func, convert._call_converter(evaluator.converter, batch, evaluator.device)
                )
            sums.add_scalars(observation, len(batch))
            show()


def _from_the_start(iterator: EvaluationIterator) -> EvaluationIterator:
    if hasattr(iterator, 'reset'):
        iterator.reset()
        return iterator
    warnings.warn(
        f'{type(iterator.actual).__name__} has no reset method, so each evaluation reads a copy '
        'of it. Give it a reset method.',
        DeprecationWarning,  # as Chainer's
        stacklevel=2,
    )
    return copy.copy(iterator)


@contextmanager
def _progress(evaluator: Evaluator, iterator: EvaluationIterator) -> Iterator[Callable[[], None]]:
    """Return what is to be called after each batch."""
    if not evaluator._progress_bar:
        yield lambda: None
        return
    bar = _IteratorProgressBar(iterator)
    yield bar.update
    bar.close()


@contextmanager
def _reporter(evaluator: Evaluator) -> Iterator[chainer.Reporter]:
    """Give the links names that begin with the evaluator's."""
    reporter = chainer.Reporter()
    prefix = '' if evaluator.name is None else f'{evaluator.name}/'
    for name, target in evaluator.get_all_targets().items():
        reporter.add_observer(prefix + name, target)
        reporter.add_observers(prefix + name, target.namedlinks(skipself=True))
    with reporter:
        yield reporter


def _call(function: Any, arrays: Any) -> None:
    if isinstance(arrays, tuple):
        function(*arrays)
    elif isinstance(arrays, dict):
        function(**arrays)
    else:
        function(arrays)
