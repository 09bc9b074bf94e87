"""Modules that ``import chainer`` would load and few programs use: loaded when one is used first.

Where a package is not installed, ``from mnx.chainer_compat.late import ...`` fails at once, as
Chainer expects.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

MODULES = {
    'filelock': 'filelock',
    'h5py': 'h5py',
    'io': 'scipy.io',
    'scipy': 'scipy',  # loads its parts itself when they are asked for
    'sparse': 'scipy.sparse',
    'special': 'scipy.special',
}


class Late:
    """A module that is loaded when a name is taken from it."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self._module), name)
        setattr(self, name, value)
        return value

    def __repr__(self) -> str:
        return f'<module {self._module!r}, loaded when it is used>'


def __getattr__(name: str) -> Late:
    module = MODULES.get(name)
    if module is None or find_spec(module.partition('.')[0]) is None:
        raise AttributeError(f'no module for {name!r}')
    return Late(module)
