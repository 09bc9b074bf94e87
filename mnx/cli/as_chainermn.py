"""``import chainermn`` gives mnx: for old scripts, in this process alone. Nothing is written.

A finder in front of all others makes modules of ChainerMN's names. Each has two sources::

    chainermn.links.MultiNodeChainList
              │     1. what is different here: `_OWN`
              └───► 2. mnx.links

What mnx does not have ends in an error that says so. ChainerMN itself, which comes with Chainer, is
never imported.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from multiprocessing import spawn
from types import ModuleType
from typing import Any

import chainer

from mnx.cli import speech
from mnx.communicators import Communicator, create_communicator
from mnx.communicators.factory import COMMUNICATORS
from mnx.errors import ArgumentError, MissingPackageError
from mnx.transports import nccl

OLD = 'chainermn'

# ChainerMN's modules for which mnx has no one module of that name, by that of mnx
_ELSEWHERE = {
    f'{OLD}.communicators.mpi_communicator_base': 'mnx.communicators',
    f'{OLD}.communicators.naive_communicator': 'mnx.communicators.naive',
    f'{OLD}.communicators.flat_communicator': 'mnx.communicators.flat',
    f'{OLD}.communicators.dummy_communicator': 'mnx.communicators.dummy',
    f'{OLD}.communicators.non_cuda_aware_communicator': 'mnx.communicators.non_cuda_aware',
    f'{OLD}.communicators.pure_nccl_communicator': 'mnx.communicators.nccl',
    f'{OLD}.datasets.scatter': 'mnx.datasets.scatter',
    f'{OLD}.nccl': 'mnx.transports.nccl' if nccl.probe()[1] else 'cupy.cuda.nccl',
}
# Only these are modules; another name in a `from ... import` is a missing function or class.
_PACKAGES = frozenset(
    f'{OLD}.{name}'
    for name in (
        *('communicators', 'datasets', 'extensions', 'functions', 'iterators', 'links'),
        *('optimizers', 'testing', 'global_except_hook', 'nccl'),
    )
)

_said_auto = False


def install() -> None:
    """From now on ``import chainermn`` gives mnx in this process. Calling it again does nothing.

    So it does in processes that `multiprocessing` starts from here, which import the script anew.

    Raises
    ------
    ImportError
        ChainerMN itself has been imported already.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if OLD in sys.modules:
        raise ImportError(f'--as-chainermn: {OLD} itself has been imported already.')
    sys.meta_path.insert(0, _Finder())
    _prepare_children()


def let_one_rank_deprecate() -> None:
    """Let rank 0 alone say what is deprecated of mnx: the others call the same."""
    if not speech.speaks() and not sys.warnoptions:  # a wish of the user's, `-W error` for one
        warnings.filterwarnings('ignore', r'\w+ is deprecated; use ', DeprecationWarning)


def _prepare_children() -> None:
    prepare = spawn.get_preparation_data

    def prepare_with_installation(name: str) -> dict[str, object]:
        return {**prepare(name), 'mnx': _Installation()}

    spawn.get_preparation_data = prepare_with_installation


class _Installation:
    """Installs where it is unpickled: in a child, before that imports the script."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _install_in_child, ()


def _install_in_child() -> None:
    if OLD not in sys.modules:  # a server from which children are forked may have imported it
        install()


class _Finder(MetaPathFinder):
    """Finds `chainermn` and all below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != OLD and not fullname.startswith(f'{OLD}.'):
            return None
        source = _source_of(fullname)
        if source is None:
            raise ImportError(_absent(fullname), name=fullname)
        return ModuleSpec(fullname, _Loader(source), is_package=True)


class _Loader(Loader):
    def __init__(self, source: ModuleType) -> None:
        self._source = source

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name, self._source)

    def exec_module(self, module: ModuleType) -> None:
        """Load with ``import chainermn`` what it has always loaded, as far as mnx has it."""
        if module.__name__ == OLD:
            for name in sorted(_PACKAGES):
                if _source_of(name) is not None:
                    importlib.import_module(name)


class _Module(ModuleType):
    """A module of ChainerMN's name, over one of mnx."""

    def __init__(self, name: str, source: ModuleType) -> None:
        super().__init__(name, f'{source.__name__}, under the name of {name}')
        self._source = source
        for own, value in _OWN.get(name, {}).items():
            setattr(self, own, value)

    def __getattr__(self, name: str) -> Any:
        full = self.__name__
        if not name.startswith('__'):
            try:
                return getattr(self._source, name)
            except AttributeError:
                pass
        raise AttributeError(_absent(f'{full}.{name}'), name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._source)})


def _source_of(fullname: str) -> ModuleType | None:
    """Return the module of mnx for one of ChainerMN's; None if there is none."""
    name = _ELSEWHERE.get(fullname)
    if name is None and (fullname == OLD or fullname in _PACKAGES):
        name = 'mnx' + fullname.removeprefix(OLD)
    if name is None:
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _absent(name: str) -> str:
    return (
        f'mnx has no {name} yet, for which the script asks (mnx run --as-chainermn). Leave it out '
        'of the script, or see in the documentation of mnx what does the same.'
    )


def create_old_communicator(
    communicator_name: str = 'pure_nccl', mpi_comm: Any = None, **kwargs: Any
) -> Communicator:
    """Create a communicator by ChainerMN's names and default. Collective.

    Where some rank has no GPU or NCCL, 'pure_nccl' becomes 'auto', and rank 0 says so once.
    """
    try:
        return create_communicator(communicator_name, mpi_comm, **kwargs)
    except MissingPackageError as error:  # on all ranks
        if communicator_name not in ('pure_nccl', 'nccl'):
            raise
        comm = create_communicator('auto', mpi_comm, **kwargs)
        _say_auto(comm, communicator_name, str(error))
        return comm


def _say_auto(comm: Communicator, name: str, reason: str) -> None:
    global _said_auto
    if not _said_auto:
        _said_auto = True
        why = reason.partition(', but ')[2].partition('. Install')[0]
        speech.complain(f'{name!r} needs NCCL, but {why}. Instead: {comm.describe()}.')


class _MadeByName(type):
    """A class of ChainerMN: called with a communicator of mpi4py it makes one of mnx."""

    name: str

    def __call__(cls, mpi_comm: Any) -> Communicator:
        if cls.__module__ != __name__:
            raise ArgumentError(
                f'{cls.__name__}: a subclass of a communicator of {OLD}, which mnx cannot make. '
                'Use create_communicator, and functions of its communicator.'
            )
        return create_old_communicator(cls.name, mpi_comm)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__bases__[0])


def _made_by_name(class_name: str, name: str, base: type[Communicator]) -> dict[str, Any]:
    return {class_name: _MadeByName(class_name, (base,), {'name': name, '__module__': __name__})}


def _classes() -> dict[str, dict[str, Any]]:
    """Return the classes of each module of communicators."""
    found = {'mpi_communicator_base': _made_by_name('MpiCommunicatorBase', 'naive', Communicator)}
    for name, new in (
        *(('naive', 'naive'), ('flat', 'flat'), ('dummy', 'dummy')),
        *(('non_cuda_aware', 'non_cuda_aware'), ('pure_nccl', 'nccl')),
    ):
        class_name = ''.join(word.title() for word in name.split('_')) + 'Communicator'
        found[f'{name}_communicator'] = _made_by_name(class_name, new, COMMUNICATORS[new])
    return {f'{OLD}.communicators.{module}': classes for module, classes in found.items()}


_OWN: dict[str, dict[str, Any]] = {
    OLD: {
        'create_communicator': create_old_communicator,
        '__version__': chainer.__version__,
    },
    f'{OLD}.communicators': {'create_communicator': create_old_communicator},
    **_classes(),
    f'{OLD}.nccl': {'_available': not nccl.probe()[1]},
}
