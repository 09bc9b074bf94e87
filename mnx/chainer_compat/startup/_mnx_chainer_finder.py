"""Read by Python at start, from mnx-chainer.pth: wait for ``chainer``, then let mnx repair it.

It stands at the root of site-packages, so that it is there in every process (also in workers that
unpickle Chainer's objects before anything of mnx is imported), and costs next to nothing until
``chainer`` is asked for. Then it hands over to ``mnx.chainer_compat``, which it loads without
running ``mnx/__init__.py``: that one imports Chainer, which is what we are in the middle of.
"""

import sys

TYPE_CHECKING = False  # `typing` would cost more than all the rest
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

COMPAT = 'mnx.chainer_compat'


class ChainerFinder:
    """An entry of ``sys.meta_path`` that knows one name."""

    @staticmethod
    def find_spec(
        name: str, path: 'Sequence[str] | None' = None, target: 'ModuleType | None' = None
    ) -> 'ModuleSpec | None':
        """Install mnx's own finder, and ask it, when it is Chainer that is looked for."""
        if name != 'chainer' and not name.startswith('chainer.'):
            return None
        compat = load_compat()
        finder = compat.install() if compat else None
        return finder.find_spec(name, path, target) if finder else None


def load_compat() -> 'ModuleType | None':
    """Return the module ``mnx.chainer_compat``, or None where mnx is not installed any more."""
    if COMPAT in sys.modules:
        return sys.modules[COMPAT]
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    mnx = find_spec('mnx')
    if mnx is None or not mnx.submodule_search_locations:
        return None
    home = mnx.submodule_search_locations[0]
    spec = spec_from_file_location(COMPAT, f'{home}/chainer_compat/__init__.py')
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[COMPAT] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[COMPAT]
        raise
    return module


sys.meta_path.insert(0, ChainerFinder)
