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
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import chainer

from mnx.cli import speech
from mnx.communicators import Communicator, create_communicator
from mnx.errors import MissingPackageError
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
    f'{OLD}.nccl': 'mnx.transports.nccl',
}
_RENAMED = {
    (f'{OLD}.communicators.pure_nccl_communicator', 'PureNcclCommunicator'): 'NcclCommunicator',
    (f'{OLD}.communicators.mpi_communicator_base', 'MpiCommunicatorBase'): 'CommunicatorBase',
}
# Only these are modules; another name in a `from ... import` is a missing function or class.
_PACKAGES = frozenset(
    f'{OLD}.{name}'
    for name in (
        *('communicators', 'datasets', 'extensions', 'functions', 'iterators', 'links'),
        *('optimizers', 'testing', 'global_except_hook'),
    )
)

_said_auto = False


def install() -> None:
    """From now on ``import chainermn`` gives mnx in this process. Calling it again does nothing.

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
                return getattr(self._source, _RENAMED.get((full, name), name))
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


_OWN: dict[str, dict[str, Any]] = {
    OLD: {
        'create_communicator': create_old_communicator,
        '__version__': chainer.__version__,
    },
    f'{OLD}.communicators': {'create_communicator': create_old_communicator},
    f'{OLD}.nccl': {'_available': not nccl.probe()[1]},
}
