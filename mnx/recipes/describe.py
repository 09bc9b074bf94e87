"""What a recipe's training holds and sends, in words and numbers, before it is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mnx.functions.replicated import part_bounds
from mnx.recipes import schema
from mnx.recipes.plan import LayerPlan, Message
from mnx.recipes.rules import STATES

LAYER_COLUMNS = ('layer', 'returns', 'parameters', 'split by', 'forward', 'backward')
RANK_COLUMNS = (
    *('rank', 'samples', 'parameters', 'state', 'MB'),
    *('activations sent', 'gradients sent'),
)


@dataclass(frozen=True)
class Holding:
    """What one rank has, and what it exchanges with others in each step, in numbers.

    Attributes
    ----------
    samples : int
        Of each batch.
    parameters, state : int
        State: what the learning rules keep beside the parameters.
    activations : int
        Exchanged with the ranks that share the model.
    statistics : int
        Of batch normalisation, exchanged with those that share the data.
    gradients : int
        The same.
    """

    samples: int
    parameters: int
    state: int
    activations: int
    statistics: int
    gradients: int

    def megabytes(self, itemsize: int) -> float:
        """Return how much memory parameters, gradients and state take."""
        return (2 * self.parameters + self.state) * itemsize / 1e6


def holding(
    recipe: schema.Recipe, layers: list[LayerPlan], rank: int, rows: int, columns: int
) -> Holding:
    """Return what a rank of a grid holds and sends: a pure function."""
    row, column = divmod(rank, columns)
    start, end = part_bounds(recipe.batch_size, row, rows)
    held = {layer.name: sum(w.held(column, columns) for w in layer.weights) for layer in layers}
    total = sum(held.values())
    messages = {name: sent(layers, end - start, name) for name in ('model', 'data')}
    return Holding(
        samples=end - start,
        parameters=total,
        state=sum(STATES[rule_of(recipe, x).type] * held[x.name] for x in layers),
        activations=messages['model'] if columns > 1 else 0,
        statistics=messages['data'] if rows > 1 else 0,
        gradients=total if rows > 1 else 0,
    )


def sent(layers: list[LayerPlan], samples: int, among: str) -> int:
    """Return how many numbers the layers' messages have."""
    return sum(m.numbers(samples) for x in layers for m in x.messages if m.among == among)


def rule_of(recipe: schema.Recipe, layer: LayerPlan) -> Any:
    """Return the learning rule of a layer."""
    return getattr(layer.layer, 'learning_rule', None) or recipe.optimizer


def as_dict(
    recipe: schema.Recipe, layers: list[LayerPlan], rows: int, columns: int
) -> dict[str, Any]:
    """Return all that the tables tell, with names for programs."""
    ranks = [holding(recipe, layers, rank, rows, columns) for rank in range(rows * columns)]
    return {
        'datapar': rows,
        'modelpar': columns,
        'batch_size': recipe.batch_size,
        'dtype': recipe.dtype,
        'layers': [_layer_as_dict(recipe, layer, rows, columns) for layer in layers],
        'ranks': [{'rank': rank, **asdict(has)} for rank, has in enumerate(ranks)],
    }


def _layer_as_dict(
    recipe: schema.Recipe, layer: LayerPlan, rows: int, columns: int
) -> dict[str, Any]:
    samples = part_bounds(recipe.batch_size, 0, rows)[1]
    return {
        'name': layer.name,
        'type': layer.kind,
        'returns': list(layer.outputs),
        'parameters': sum(w.size for w in layer.weights),
        'split_by': layer.role.partition if layer.role and columns > 1 else None,
        'messages': [
            {'among': m.among, 'when': m.when, 'kind': m.kind, 'calls': m.calls}
            | {'numbers': m.numbers(samples)}
            for m in _seen(layer, rows, columns)
        ],
    }


def layer_rows(
    recipe: schema.Recipe, layers: list[LayerPlan], rows: int, columns: int
) -> Iterator[tuple[str, ...]]:
    """Return a line for each layer; what it sends is that of the first row, in each step."""
    samples = part_bounds(recipe.batch_size, 0, rows)[1]
    for layer in layers:
        kind = '' if layer.name.startswith(layer.kind) else f' ({layer.kind})'
        n = sum(w.size for w in layer.weights)
        yield (
            layer.name + kind,
            ' x '.join(map(str, layer.outputs)),
            f'{n:,}' if n else '',
            layer.role.partition if layer.role and columns > 1 else '',
            _words(layer, 'forward', samples, rows, columns),
            _words(layer, 'backward', samples, rows, columns),
        )


def _words(layer: LayerPlan, when: str, samples: int, rows: int, columns: int) -> str:
    seen = _seen(layer, rows, columns)
    return ', '.join(_in_words(m, samples) for m in seen if m.when == when)


def _seen(layer: LayerPlan, rows: int, columns: int) -> list[Message]:
    """Return the messages that are sent on such a grid."""
    size = {'data': rows, 'model': columns}
    return [m for m in layer.messages if size[m.among] > 1]


def _in_words(message: Message, samples: int) -> str:
    calls = f' in {message.calls} calls' if message.calls > 1 else ''
    return f'{message.kind} {message.numbers(samples):,}{calls}'


def rank_rows(
    recipe: schema.Recipe, layers: list[LayerPlan], rows: int, columns: int
) -> Iterator[tuple[str, ...]]:
    """Return a line for each rank."""
    itemsize = 8 if recipe.dtype == 'float64' else 4
    for rank in range(rows * columns):
        has = holding(recipe, layers, rank, rows, columns)
        yield (
            str(rank),
            f'{has.samples:,}',
            f'{has.parameters:,}',
            f'{has.state:,}',
            f'{has.megabytes(itemsize):.2f}',
            f'{has.activations + has.statistics:,}',
            f'{has.gradients:,}',
        )
