"""Imports point downwards only, and each wire library has one home.

    mnx itself, extensions, global_except_hook, testing
    cli, recipes, training
    optimizers, links
    gradients, functions, datasets, iterators
    communicators
    packing, topology, health
    transports
    arrays, kernels, recycling, lazily, errors, chainer_compat

A module may import what stands below it or beside it, but never in a circle. The source is read,
not run, so an import inside a function counts too.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import mnx
from tests.launching import alone

pytestmark = alone

HOME = Path(mnx.__file__).parent

LAYERS = (
    {'mnx', '__main__', 'extensions', 'global_except_hook', 'testing'},
    {'cli', 'recipes', 'training'},
    {'optimizers', 'links'},
    {'gradients', 'functions', 'datasets', 'iterators'},
    {'communicators'},
    {'packing', 'packing_gpu', 'topology', 'health'},
    {'transports'},
    {'arrays', 'kernels', '_kernels', 'recycling', 'lazily', 'errors', 'chainer_compat'},
)
HEIGHT = {part: -depth for depth, parts in enumerate(LAYERS) for part in parts}

# Who may import what (and their neighbours of the same prefix: mpi_emergency), and no others.
RESERVED = {
    'mpi4py': ('mnx.transports.mpi',),
    'cupy.cuda.nccl': ('mnx.transports.nccl',),
    'chainermn': (),
    'mnx._kernels': ('mnx.kernels',),
}


@dataclass(frozen=True)
class Import:
    """Module `source` imports `target`; eagerly, if that happens when it is imported itself."""

    source: str
    target: str
    line: int
    eager: bool

    def __str__(self) -> str:
        return f'{self.source}:{self.line} imports {self.target}'


# --- reading -------------------------------------------------------------------------------------


def read_tree(home: Path) -> dict[str, str]:
    """Return the source of every module, by its dotted name."""
    tree = {}
    for path in sorted(home.rglob('*.py')):
        if (path.parent / '__init__.py').exists():  # the start-up file is no module of mnx
            name = '.'.join([home.name, *path.relative_to(home).with_suffix('').parts])
            tree[name.removesuffix('.__init__')] = path.read_text(encoding='utf-8')
    return tree


def imports_of(tree: dict[str, str]) -> list[Import]:
    """Return every import of every module."""
    packages = {name.rpartition('.')[0] for name in tree}
    found = []
    for name, source in tree.items():
        package = name if name in packages else name.rpartition('.')[0]
        for node, eager in statements(ast.parse(source), eager=True):
            found += [
                Import(name, target, node.lineno, eager) for target in targets(node, package, tree)
            ]
    return found


def statements(node: ast.AST, *, eager: bool) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    """Walk all nodes; what stands in a function or under TYPE_CHECKING does not run on import."""
    for child in ast.iter_child_nodes(node):
        runs = eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(child.test):
            runs = False
        if isinstance(child, ast.Import | ast.ImportFrom | ast.Call):
            yield child, runs
        yield from statements(child, eager=runs)


def targets(node: ast.AST, package: str, tree: dict[str, str]) -> list[str]:
    """Return the modules that one statement imports: submodules by their full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = absolute(node, package)
        names = [f'{base}.{alias.name}' for alias in node.names]
        return [name if name in tree or is_reserved(name) else base for name in names]
    match node:  # import_module('a.b')
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
            return [name] if ast.unparse(func).endswith(('import_module', '__import__')) else []
    return []


def absolute(node: ast.ImportFrom, package: str) -> str:
    parents = package.split('.')[: len(package.split('.')) - node.level + 1]
    return '.'.join([*(parents if node.level else []), *([node.module] if node.module else [])])


def is_reserved(name: str) -> bool:
    return any(f'{name}.'.startswith(f'{library}.') for library in RESERVED)


def part_of(name: str) -> str:
    """Return the layer's word for a module: ``mnx.health.failures`` is 'health'."""
    return name.split('.')[1] if '.' in name else name


# --- rules ---------------------------------------------------------------------------------------


def wrong_directions(tree: dict[str, str]) -> list[str]:
    return [
        str(i)
        for i in imports_of(tree)
        if i.target.split('.')[0] == 'mnx' and HEIGHT[part_of(i.target)] > HEIGHT[part_of(i.source)]
    ]


def circle(tree: dict[str, str]) -> list[str]:
    """Return parts of mnx that import one another, or nothing."""
    graph: dict[str, set[str]] = {}
    for i in imports_of(tree):
        source, target = part_of(i.source), part_of(i.target)
        if i.target.split('.')[0] == 'mnx' and source != target:
            graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def outside_their_homes(tree: dict[str, str]) -> list[str]:
    return [
        str(i)
        for i in imports_of(tree)
        for library, homes in RESERVED.items()
        if f'{i.target}.'.startswith(f'{library}.') and not i.source.startswith(homes)
    ]


def loaded_by(module: str, tree: dict[str, str]) -> set[str]:
    """Return all that ``import module`` imports, as far as mnx decides it."""
    eager: dict[str, set[str]] = {}
    for i in imports_of(tree):
        if i.eager:
            eager.setdefault(i.source, set()).add(i.target)
    loaded, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name and name not in loaded:
            loaded.add(name)
            waiting += [*eager.get(name, ()), name.rpartition('.')[0]]
    return loaded


# --- tests ---------------------------------------------------------------------------------------

TREE = read_tree(HOME)


def test_every_part_has_its_layer():
    assert {part_of(name) for name in TREE} <= HEIGHT.keys()


def test_every_folder_is_a_package():
    """Or it would be left out of the wheel."""
    folders = {path.parent for path in HOME.rglob('*.py')} - {HOME / 'chainer_compat/startup'}
    assert [str(f) for f in folders if not (f / '__init__.py').exists()] == []


def test_imports_point_downwards():
    assert wrong_directions(TREE) == []


def test_no_circles():
    assert circle(TREE) == []


def test_wire_libraries_have_one_home():
    assert outside_their_homes(TREE) == []


def test_import_mnx_needs_no_mpi_and_no_gpu():
    loaded = loaded_by('mnx', TREE)
    assert [name for name in loaded if name.split('.')[0] in ('mpi4py', 'cupy', 'cupyx')] == []


def test_chainer_compat_stands_alone():
    """It is loaded before mnx is, so it may import nothing of mnx but itself."""
    wrong = [
        str(i)
        for i in imports_of(TREE)
        if part_of(i.source) == 'chainer_compat'
        and i.target.split('.')[0] == 'mnx'
        and part_of(i.target) != 'chainer_compat'
    ]
    assert wrong == []


class TestPlantedViolationsAreSeen:
    """The rules themselves, on trees of a few lines."""

    def test_upwards(self):
        tree = {
            'mnx': '',
            'mnx.health': '',
            'mnx.health.watchdog': 'def f():\n    from mnx.communicators import base\n',
            'mnx.communicators': '',
            'mnx.communicators.base': 'from ..health import watchdog\n',
        }
        assert wrong_directions(tree) == [
            'mnx.health.watchdog:2 imports mnx.communicators.base',
        ]

    def test_upwards_to_the_index(self):
        tree = {'mnx': '', 'mnx.errors': 'from mnx import create_communicator\n'}
        assert wrong_directions(tree) == ['mnx.errors:1 imports mnx']

    def test_upwards_by_name(self):
        tree = {'mnx.packing': "import_module('mnx.links')\n", 'mnx.links': ''}
        assert wrong_directions(tree) == ['mnx.packing:1 imports mnx.links']

    def test_circle(self):
        tree = {
            'mnx.packing': 'import mnx.topology\n',
            'mnx.topology': 'from mnx.health.x import y\n',
            'mnx.health': '',
            'mnx.health.x': 'from mnx import packing\n',
        }
        assert set(circle(tree)) == {'packing', 'topology', 'health'}

    def test_mpi4py_elsewhere(self):
        tree = {'mnx.health.x': 'def f():\n    from mpi4py import MPI\n', 'mnx.health': ''}
        assert outside_their_homes(tree) == ['mnx.health.x:2 imports mpi4py.MPI']

    def test_nccl_elsewhere(self):
        tree = {'mnx.arrays': 'from cupy.cuda import nccl\n'}
        assert outside_their_homes(tree) == ['mnx.arrays:1 imports cupy.cuda.nccl']

    def test_chainermn(self):
        tree = {'mnx.links': 'import chainermn.links as links\n'}
        assert outside_their_homes(tree) == ['mnx.links:1 imports chainermn.links']

    def test_mpi4py_too_early(self):
        tree = {
            'mnx': 'from mnx.communicators import auto\n',
            'mnx.communicators': '',
            'mnx.communicators.auto': 'import mnx.transports.mpi\n',
            'mnx.transports': '',
            'mnx.transports.mpi': 'from mpi4py import MPI\n',
        }
        assert 'mpi4py' in loaded_by('mnx', tree)
        tree['mnx.communicators.auto'] = 'def f():\n    import mnx.transports.mpi\n'
        assert 'mpi4py' not in loaded_by('mnx', tree)
