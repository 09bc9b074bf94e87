"""``mnx train CONFIG.yaml``: train what a recipe describes, on one process or many."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mnx.cli import speech, tables
from mnx.communicators import Communicator, create_communicator
from mnx.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from mnx.recipes.document import Document
    from mnx.recipes.grid import Grid
    from mnx.recipes.plan import LayerPlan
    from mnx.recipes.schema import Recipe


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    path: str
    datapar: bool = False
    modelpar: bool = False
    grid: str | None = None
    describe: bool = False
    seed: int | None = None
    output: str | None = None
    resume: str | None = None
    as_json: bool = False


def add_to(app: Any, choose: Callable[[Callable[[], int]], None]) -> None:
    """Add the command to a typer application."""
    import typer

    @app.command()
    def train(
        path: Annotated[str, typer.Argument(metavar='CONFIG', help='A recipe in YAML.')],
        datapar: Annotated[
            bool, typer.Option('--datapar', '-p', help='Each process has a part of each batch.')
        ] = False,
        modelpar: Annotated[
            bool, typer.Option('--modelpar', '-m', help='Each process has a part of the model.')
        ] = False,
        grid: Annotated[
            str | None,
            typer.Option(metavar='DxM', help='With both: the batch in D parts, the model in M.'),
        ] = None,
        describe: Annotated[
            bool, typer.Option('--describe', help='Tell layers, sizes and traffic; do not train.')
        ] = False,
        seed: Annotated[
            int | None,
            typer.Option('--rng-seed', '-r', min=0, max=2**32 - 1, help="Instead of the recipe's."),
        ] = None,
        output: Annotated[
            str | None, typer.Option('--output', '-o', metavar='FILE', help='Append results here.')
        ] = None,
        resume: Annotated[
            str | None, typer.Option(metavar='FILE', help='Go on from a snapshot.')
        ] = None,
        as_json: Annotated[
            bool, typer.Option('--json', help='With --describe: print JSON.')
        ] = False,
    ) -> None:
        """Train a model that a file of YAML describes."""
        wishes = Wishes(path, datapar, modelpar, grid, describe, seed, output, resume, as_json)
        choose(lambda: execute(wishes))


def execute(wishes: Wishes) -> int:
    """Train or describe; return the exit status. Collective."""
    speech.needs('pydantic', 'yaml')
    with create_communicator() as world:
        return run(wishes, world)


def run(wishes: Wishes, world: Communicator) -> int:
    """Do what is wished on the ranks of `world`. Collective."""
    from mnx.recipes.grid import arrange

    try:
        if wishes.as_json and not wishes.describe:
            raise ArgumentError('--json prints a description. Add --describe, or leave it out.')
        rows, columns = _shape(wishes, world.size)
        prepared = _prepare(wishes, world, rows)
        if not wishes.describe:
            prepared.check_place(world, rows, columns)
    except (ArgumentError, DataError) as error:
        speech.complain(str(error))
        return speech.USAGE
    if wishes.describe:
        _describe(prepared, rows, columns, as_json=wishes.as_json)
        return speech.OK
    with arrange(world, rows, columns) as grid:
        return _train(wishes, prepared, grid)


@dataclass(frozen=True)
class Prepared:
    """A recipe that has been checked, and its data."""

    recipe: 'Recipe'
    layers: 'list[LayerPlan]'
    samples: Any
    document: 'Document'

    def check_place(self, world: Communicator, rows: int, columns: int) -> None:
        """Raise ArgumentError unless there is room in memory and for snapshots. Collective."""
        from mnx.recipes import memory, training

        training.check_snapshot(self.recipe, self.document, world)
        with world.together('train'), self.document.explains():
            memory.check(self.recipe, self.layers, rows, columns, memory.available())


def _shape(wishes: Wishes, size: int) -> tuple[int, int]:
    from mnx.recipes import grid

    if wishes.describe and wishes.grid:
        return grid.parse(wishes.grid)  # of ranks that need not be there
    return grid.choose(size, datapar=wishes.datapar, modelpar=wishes.modelpar, grid=wishes.grid)


def _prepare(wishes: Wishes, world: Communicator, rows: int) -> Prepared:
    """Read and check all that can be wrong with the files."""
    from mnx.recipes import training

    document, recipe = training.read(wishes.path, world)
    if wishes.seed is not None:
        recipe = recipe.model_copy(update={'seed': wishes.seed})
    samples = training.load(recipe, document, world)
    layers = training.plan_of(recipe, document, samples)
    training.check(recipe, document, rows, len(samples.train))
    if wishes.output:
        training.check_output(wishes.output, world)
    return Prepared(recipe, layers, samples, document)


def _describe(prepared: Prepared, rows: int, columns: int, *, as_json: bool) -> None:
    from mnx.recipes import describe

    recipe, layers = prepared.recipe, prepared.layers
    if as_json:
        told = describe.as_dict(recipe, layers, rows, columns)
        speech.print_json({'data': prepared.samples.description, **told})
        return
    speech.say(f'data: {prepared.samples.description}')
    speech.say(f'{_processes(rows, columns)}; {recipe.batch_size} samples in each step\n')
    right = [c for c in describe.LAYER_COLUMNS if c == 'parameters']
    table = describe.layer_rows(recipe, layers, rows, columns)
    tables.print_table(describe.LAYER_COLUMNS, table, right=right)
    speech.say('')
    table = describe.rank_rows(recipe, layers, rows, columns)
    tables.print_table(describe.RANK_COLUMNS, table, right=describe.RANK_COLUMNS)


def _train(wishes: Wishes, prepared: Prepared, grid: 'Grid') -> int:
    from mnx.recipes.training import Report, Session, append_row

    recipe, world = prepared.recipe, grid.world
    session = Session(recipe, prepared.layers, prepared.samples, grid)
    speech.say(f'data: {prepared.samples.description}')
    speech.say(_processes(*grid.shape))
    if world.rank == 0:
        session.trainer.extend(Report(speech.say))
    if wishes.resume:
        try:
            session.resume(wishes.resume)
        except (ArgumentError, DataError) as error:
            speech.complain(str(error))
            return speech.USAGE
    results = session.run()
    shown = [f'{k.removeprefix("test/")} {v:.4f}' for k, v in results.items() if 'test/' in k]
    speech.say(f'test: {", ".join(shown)}')
    if wishes.output:
        rows, columns = grid.shape
        facts = {'config': wishes.path, 'datapar': rows, 'modelpar': columns, 'seed': recipe.seed}
        append_row(wishes.output, {**facts, 'epochs': recipe.epochs, **results}, world)
    return speech.OK


def _processes(rows: int, columns: int) -> str:
    size = rows * columns
    if size == 1:
        return '1 process'
    data = f'each batch in {rows} parts' if rows > 1 else 'whole batches'
    model = f'the model in {columns} parts' if columns > 1 else 'whole models'
    return f'{size} processes: {data}, {model}'
