"""A recipe's training: data, network, optimizer and reports put together on a grid of ranks."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chainer
import numpy as np
from chainer import training
from chainer.dataset import concat_examples
from chainer.optimizer_hooks import GradientClipping
from chainer.training import extensions

from mnx.communicators import Communicator
from mnx.datasets import load_images
from mnx.errors import ArgumentError, MissingDataError
from mnx.optimizers import create_multi_node_optimizer
from mnx.recipes import rules, schema
from mnx.recipes.document import Document, EntryError, parse
from mnx.recipes.grid import Grid
from mnx.recipes.network import Network, sample_shape
from mnx.recipes.objective import Objective
from mnx.recipes.plan import LayerPlan, Shape, plan
from mnx.recipes.saving import SerialSnapshot, resume
from mnx.training.evaluator import create_multi_node_evaluator
from mnx.training.observations import Histories, ObservationAggregator

Say = Callable[[str], None]


@dataclass(frozen=True)
class Samples:
    """The data of a recipe, whole on every rank.

    Attributes
    ----------
    train, test : sequence
        Of pairs: a sample, and its label.
    description : str
    shape : tuple of int
        Of one sample.
    n_classes : int
    """

    train: Any
    test: Any
    description: str
    shape: Shape
    n_classes: int


def read(path: str, comm: Communicator) -> tuple[Document, schema.Recipe]:
    """Return a file and the recipe in it. Collective: rank 0 reads.

    Raises
    ------
    ArgumentError
        The file is missing or wrong: one line for each problem (on all ranks).
    """
    text = None
    with comm.together('train'):
        if comm.rank == 0:
            text = _text_of(path)
    document = parse(comm.bcast_obj(text), path)
    return document, schema.validate(document)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding='utf-8')
    except OSError as error:
        raise ArgumentError(f'{path}: cannot be read ({error.strerror}). Check its name.') from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f'{path}:1: not a text in UTF-8 (byte {error.start}).') from None


def load(recipe: schema.Recipe, document: Document, comm: Communicator) -> Samples:
    """Return the recipe's data. Collective: rank 0 reads, all have it in the end."""
    data = recipe.data
    try:
        images = load_images(data.name, data.folder, comm=comm)
    except (ArgumentError, MissingDataError) as error:  # on all ranks
        key = 'name' if data.folder is None else 'folder'
        found, separator, _ = str(error).partition(' Ways to get some:')
        text = f'{found} {_how_to_get(data.name)}' if separator else found
        raise document.error(EntryError(('data', key), text)) from None
    shape = sample_shape(images.n_pixels, data.shape)
    with document.explains():
        if shape is None:
            raise EntryError(
                ('data', 'shape'), f'expected {images.n_pixels} numbers, but got {data.shape}'
            )
    train, test = comm.bcast_obj((images.train, images.test))
    n = max(1, round(data.fraction * len(train)))
    assert shape is not None
    return Samples(train[:n], test, images.description, shape, images.n_classes)


def _how_to_get(name: str) -> str:
    """Return what to do where there are no images of this name, in the words of a recipe."""
    digits = 'The digits come with scikit-learn: pip install scikit-learn.'
    if name == 'digits':
        return digits
    known = 'mnist' if name == 'auto' else name
    call = f'from mnx.datasets import load_images; load_images({known!r}, download=True)'
    files = (
        f'Name a folder that holds the files (data: {{name: {known}, folder: DIR}}), or download '
        f'them once: python -c "{call}"'
    )
    return f'{digits} {files}' if name == 'auto' else files


def plan_of(recipe: schema.Recipe, document: Document, samples: Samples) -> list[LayerPlan]:
    """Return the recipe's layers in numbers.

    Raises
    ------
    ArgumentError
        They do not fit together: file, line, key.
    """
    with document.explains():
        return plan(recipe, samples.shape, samples.n_classes)


def check(recipe: schema.Recipe, document: Document, n_rows: int, n_samples: int) -> None:
    """Raise ArgumentError if the batch is too small for the ranks, or too large for the data."""
    with document.explains():
        if recipe.batch_size < n_rows:
            raise EntryError(
                ('batch_size',),
                f'expected {n_rows} or more, one sample for each part of the batch, '
                f'but got {recipe.batch_size}',
            )
        if recipe.batch_size > n_samples:
            raise EntryError(
                ('batch_size',),
                f'expected {n_samples} or fewer, which is all there is to train on, '
                f'but got {recipe.batch_size}',
            )
        if recipe.schedule and isinstance(recipe.optimizer, schema.Adadelta):
            raise EntryError(('schedule',), 'adadelta has no learning rate. Leave the schedule out')


class Session:
    """One training, ready to run. Collective: all ranks make it and use it alike.

    Parameters
    ----------
    recipe : Recipe
    layers : list of LayerPlan
    samples : Samples
    grid : Grid

    Attributes
    ----------
    model : Objective
    trainer : chainer.training.Trainer
    evaluator
        Returns the means over the whole test set, on all ranks.
    """

    def __init__(
        self, recipe: schema.Recipe, layers: list[LayerPlan], samples: Samples, grid: Grid
    ) -> None:
        self.recipe, self.grid = recipe, grid
        np.random.seed(recipe.seed)  # noqa: NPY002 - Chainer draws from it; alike on all ranks
        with self._settings():
            self.model = _model(recipe, layers, grid)
            self._optimizer, self._rated = _optimizer(recipe, layers, self.model, grid)
            self.trainer = self._trainer(samples)
            self.evaluator = self._evaluator(samples)
        self._extend()

    def run(self) -> dict[str, float]:
        """Train; return what the last epoch reported, or the test set's means. Collective."""
        with self._settings():
            self.trainer.run()
        return reported(self.trainer.observation) or self.evaluate()

    def evaluate(self) -> dict[str, float]:
        """Return the means over the whole test set. Collective."""
        with self._settings():
            return reported(self.evaluator.evaluate())

    def resume(self, path: str) -> None:
        """Go on from a snapshot, of any number of ranks. Collective."""
        resume(path, self.trainer, self.grid.world)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        with chainer.using_config('dtype', np.dtype(self.recipe.dtype)):
            yield

    def _trainer(self, samples: Samples) -> training.Trainer:
        recipe = self.recipe
        iterator = chainer.iterators.SerialIterator(
            samples.train, recipe.batch_size, shuffle=recipe.data.shuffle
        )
        updater = training.updaters.StandardUpdater(
            iterator, self._optimizer, converter=self._convert_share
        )
        out = Path(recipe.snapshot.file).parent if recipe.snapshot else '.'
        return training.Trainer(updater, (recipe.epochs, 'epoch'), out=str(out))

    def _evaluator(self, samples: Samples) -> Any:
        iterator = chainer.iterators.SerialIterator(
            self.grid.share_of(samples.test), self.recipe.batch_size, repeat=False, shuffle=False
        )
        actual = extensions.Evaluator(iterator, self.model, converter=self._convert)
        return create_multi_node_evaluator(actual, self.grid.column)

    def _convert_share(self, batch: list[Any], device: Any = None) -> Any:
        """Return this row's samples of a batch as arrays."""
        return self._convert(self.grid.share_of(batch), device)

    def _convert(self, batch: list[Any], device: Any = None) -> Any:
        x, t = concat_examples(batch, device)
        return x.astype(self.recipe.dtype, copy=False), t

    def _extend(self) -> None:
        recipe, trainer, column = self.recipe, self.trainer, self.grid.column
        trainer.extend(self.evaluator)
        for name in dict.fromkeys(('loss', *recipe.metrics.train)):
            trainer.extend(
                ObservationAggregator(
                    column,
                    f'main/{name}',
                    f'train/{name}',
                    comm_trigger=(1, 'epoch'),
                    aggregator=mean_of_shares,
                ),
                name=f'train_{name}',
            )
        if recipe.schedule:
            trainer.extend(rules.Rates(recipe.schedule, recipe.epochs, self._rated))
        if recipe.snapshot:
            trainer.extend(
                SerialSnapshot(recipe.snapshot.file, self.grid.world, recipe.snapshot.every)
            )


def reported(observation: dict[str, Any]) -> dict[str, float]:
    """Return what is for people to see, under short names.

    >>> reported({'main/loss': 1, 'train/loss': 2, 'validation/main/loss': 3})
    {'train/loss': 2.0, 'test/loss': 3.0}
    """
    short = {k.replace('validation/main/', 'test/'): v for k, v in observation.items()}
    return {
        name: float(value)
        for prefix in ('train/', 'test/')
        for name, value in short.items()
        if name.startswith(prefix)
    }


def mean_of_shares(histories: Histories) -> float:
    """Return the mean over iterations of what the ranks' shares sum up to.

    >>> mean_of_shares([[1.0, 3.0], [2.0, 4.0]])
    5.0
    """
    return sum(map(sum, histories)) / len(histories[0])


def _model(recipe: schema.Recipe, layers: list[LayerPlan], grid: Grid) -> Objective:
    network = Network(layers, recipe.batch_size, grid)
    metrics = recipe.metrics
    return Objective(network, recipe.cost, metrics.train, metrics.test, recipe.batch_size)


def _optimizer(
    recipe: schema.Recipe, layers: list[LayerPlan], model: Objective, grid: Grid
) -> tuple[Any, list[rules.Rated]]:
    """Return the model's optimizer, and whose learning rates a schedule changes."""
    actual = rules.optimizer_of(recipe.optimizer)
    optimizer = actual
    if grid.column.size > 1:
        optimizer = create_multi_node_optimizer(actual, grid.column)
    optimizer.setup(model)
    for param in model.params():
        rules.decay(recipe.optimizer, param)
    if recipe.gradient_clipping:
        actual.add_hook(GradientClipping(recipe.gradient_clipping))
    own = {layer.name: getattr(layer.layer, 'learning_rule', None) for layer in layers}
    others = [rules.apply(rule, model.network[name]) for name, rule in own.items() if rule]
    return optimizer, [rated for o in (actual, *others) for rated in rules.rates_of(o)]


class Report(training.Extension):
    """Says a line after each epoch. For one rank."""

    trigger = 1, 'epoch'
    priority = training.PRIORITY_READER
    name = 'report'

    def __init__(self, say: Say) -> None:
        self._say = say
        self._start = time.monotonic()

    def initialize(self, trainer: Any) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def __call__(self, trainer: Any) -> None:
        """Say what this epoch has brought."""
        words = [f'{k} {v:.6f}' for k, v in reported(trainer.observation).items()]
        seconds = time.monotonic() - self._start
        self._say(f'epoch {trainer.updater.epoch:3d}  {"  ".join(words)}  {seconds:.1f} s')


def check_output(path: str, comm: Communicator) -> None:
    """Raise if no row could be appended: before the training, not behind it. Collective."""
    with comm.together('train'):
        if comm.rank == 0:
            try:
                open(path, 'a', encoding='utf-8').close()
            except OSError as error:
                text = f'--output {path}: cannot be written ({error.strerror}). Check its folder.'
                raise ArgumentError(text) from None


def check_snapshot(recipe: schema.Recipe, document: Document, comm: Communicator) -> None:
    """Raise if no snapshot could be written: before the training, not behind it. Collective."""
    if recipe.snapshot is None:
        return
    with comm.together('train'), document.explains():
        if comm.rank == 0:
            file = Path(recipe.snapshot.file)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                if file.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                tempfile.TemporaryFile(dir=file.parent).close()
            except OSError as error:
                text = f'{file}: cannot be written ({error.strerror}). Name another file'
                raise EntryError(('snapshot', 'file'), text) from None


def append_row(path: str, row: dict[str, Any], comm: Communicator) -> None:
    """Append a row to a file, as one line of JSON. Collective: rank 0 writes."""
    with comm.together('train'):
        if comm.rank == 0:
            with open(path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(row) + '\n')
