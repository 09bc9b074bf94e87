"""The loader in this process: what it does to a module, and what it leaves alone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

import chainer
import numpy as np
import pytest

from mnx.chainer_compat import PATCHES, PatchFinder, install
from mnx.chainer_compat.loading import SWITCH, PatchLoader
from mnx.chainer_compat.requirements import ResolutionError, WorkingSet


@pytest.fixture
def fresh_start(monkeypatch):
    """As at the start of Python: no finder, no Chainer."""
    finders = [finder for finder in sys.meta_path if finder is not PatchFinder]
    monkeypatch.setattr(sys, 'meta_path', finders)
    kept = {k: v for k, v in sys.modules.items() if k.partition('.')[0] != 'chainer'}
    monkeypatch.setattr(sys, 'modules', kept)


def test_installed_once():
    assert install() is PatchFinder
    assert sys.meta_path.count(PatchFinder) == 1


def test_repairs_only_what_is_in_the_table():
    for patch in PATCHES:
        assert type(importlib.util.find_spec(patch.module).loader) is PatchLoader
    for name in ('chainer.functions', 'chainer.link', 'chainerx', 'chainermn', 'numpy'):
        assert PatchFinder.find_spec(name) is None


def test_switched_off(fresh_start, monkeypatch):
    monkeypatch.setenv(SWITCH, '0')
    assert install() is None
    assert PatchFinder not in sys.meta_path


def test_imported_chainer_is_left_alone(fresh_start, monkeypatch):
    monkeypatch.setitem(sys.modules, 'chainer', chainer)
    monkeypatch.setitem(sys.modules, 'chainer.link', chainer.link)
    assert install() is None
    assert PatchFinder not in sys.meta_path
    assert 'chainer.link' in sys.modules


def test_leftovers_of_a_failed_import_go(fresh_start, monkeypatch):
    for name in ('chainer.link', 'chainerx', 'chainermn', 'chainer_lookalike'):
        monkeypatch.setitem(sys.modules, name, chainer.link)
    assert install() is PatchFinder
    assert 'chainer.link' not in sys.modules
    assert {'chainerx', 'chainermn', 'chainer_lookalike'} <= sys.modules.keys()


def test_tracebacks_show_the_right_line():
    class NoNumber:
        dtype = np.dtype(np.float32)

    fix = importlib.import_module('chainer.functions.math.fix')
    with pytest.raises(TypeError) as caught:
        fix.fix(NoNumber())
    frame = traceback.extract_tb(caught.tb)[1]
    assert frame.filename == fix.__file__
    assert 'force_array(xp.fix(x), x.dtype)' in frame.line  # as on disk


def test_nothing_is_written_beside_chainer(tmp_path):
    """Bytecode of repaired source must never be found by a Python without mnx."""
    path = tmp_path / 'fix.py'
    path.write_text('y = "xp.fix(x)"\n')
    loader = PatchLoader('chainer.functions.math.fix', str(path))
    spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    assert module.y == 'xp.trunc(x)'
    assert [p.name for p in Path(tmp_path).rglob('*')] == ['fix.py']


@pytest.mark.parametrize(
    ('requirement', 'met'),
    [
        ('chainer', True),
        ('chainer==7.8.1', True),
        ('Chainer>=8', False),
        ('no-such-package', False),
    ],
)
def test_requirements(requirement, met):
    if met:
        WorkingSet().require('numpy', requirement)
    else:
        with pytest.raises(ResolutionError, match=requirement):
            WorkingSet().require('numpy', requirement)
