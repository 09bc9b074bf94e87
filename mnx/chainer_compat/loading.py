"""Replace fragments of Chainer's modules while they are loaded."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from types import CodeType, ModuleType

from mnx.chainer_compat.patches import PATCHES, Patch

SWITCH = 'MNX_CHAINER_COMPAT'

_BY_MODULE = {patch.module: patch for patch in PATCHES}


def apply(patch: Patch, source: str) -> str:
    """Replace each fragment of one module's source.

    Parameters
    ----------
    patch : Patch
        What to replace, and how often each fragment must be there.
    source : str
        The module as it is on disk.

    Returns
    -------
    str
        The repaired source, with as many lines as before: tracebacks stay right.

    Warns
    -----
    RuntimeWarning
        Where a fragment is not there as often as in Chainer 7.8.1. It is left as it is.
    """
    for fragment in patch.fragments:
        found = source.count(fragment.old)
        if found == fragment.times:
            source = source.replace(fragment.old, fragment.new)
        else:
            warnings.warn(
                f'{patch.module}: not the text of Chainer 7.8.1, so it is not repaired here: '
                f'expected {fragment.old!r} {fragment.times} times but found it {found} times. '
                f'Install chainer==7.8.1, or set {SWITCH}=0 to leave Chainer as it is.',
                RuntimeWarning,
                stacklevel=2,
            )
    return source


class PatchLoader(SourceFileLoader):
    """Load one module of `PATCHES`, neither reading nor writing its cached bytecode."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = apply(_BY_MODULE[fullname], decode_source(self.get_data(path)))
        code: CodeType = self.source_to_code(source, path)
        return code


class PatchFinder:
    """A meta-path finder that knows the modules of `PATCHES` and no others."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find what Python would find, but loaded by a `PatchLoader`."""
        if fullname not in _BY_MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        # Another kind of loader (a zip file, bytecode only) is left alone.
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = PatchLoader(fullname, spec.loader.path)
        return spec


def install() -> type[PatchFinder] | None:
    """Repair Chainer from its next import on.

    A Chainer that is already imported works, and is left alone. What a failed import left behind is
    removed, so that the next one starts anew. Calling it again does nothing.

    Returns
    -------
    type of PatchFinder or None
        The finder that is now the first of ``sys.meta_path``; None where Chainer is left alone.
    """
    if PatchFinder in sys.meta_path:
        return PatchFinder
    if os.environ.get(SWITCH) == '0' or 'chainer' in sys.modules:
        return None
    _forget_failed_import()
    sys.meta_path.insert(0, PatchFinder)
    return PatchFinder


def _forget_failed_import() -> None:
    """Drop Chainer's submodules: when ``import chainer`` fails, Python drops only ``chainer``."""
    for name in [name for name in sys.modules if name.startswith('chainer.')]:
        del sys.modules[name]
