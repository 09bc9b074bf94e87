"""Modules that Chainer gets late: as if they were there, and not before they are used."""

from __future__ import annotations

import sys

import h5py
import pytest

from mnx.chainer_compat import late
from tests.chainer_compat.interpreters import run
from tests.launching import starts_jobs


@starts_jobs
def test_the_start_loads_none_of_them(tmp_path):
    run(
        '-c',
        'import mnx, chainer, sys\n'
        'packages = {name.partition(".")[0] for name in sys.modules}\n'
        'assert not packages & {"scipy", "h5py", "filelock"}, packages\n'
        'import numpy as np\n'
        'assert chainer.functions.erfinv(np.zeros(1)).array == 0\n'
        'assert "scipy.special" in sys.modules\n'
        'chainer.serializers.save_hdf5("model.h5", chainer.links.Linear(2, 3))\n'
        'assert "h5py" in sys.modules',
        cwd=tmp_path,
    )


def test_gives_what_the_module_has():
    module = late.h5py
    assert module.File is h5py.File
    with pytest.raises(AttributeError, match='no_such_name'):
        module.no_such_name  # noqa: B018
    assert repr(module) == "<module 'h5py', loaded when it is used>"


def test_what_is_not_installed_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ImportError, match='h5py'):
        from mnx.chainer_compat.late import h5py as _  # noqa: F401


def test_no_other_names():
    with pytest.raises(ImportError, match='numpy'):
        from mnx.chainer_compat.late import numpy as _  # noqa: F401
