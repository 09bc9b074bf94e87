"""The file at the root of site-packages: Chainer works in any order, in any process."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import pytest

from mnx import chainer_compat
from tests.chainer_compat.interpreters import run
from tests.launching import ROOT, starts_jobs

STARTUP = Path(chainer_compat.__file__).parent / 'startup'

pytestmark = [
    starts_jobs,
    pytest.mark.skipif(
        '_mnx_chainer_finder' not in sys.modules, reason='mnx is not installed, only importable'
    ),
]

USE = 'assert chainer.functions.fix(chainer.Variable(chainer.numpy.ones(1))).shape == (1,)'


@pytest.mark.parametrize(
    'imports',
    [
        'import chainer',
        'import chainer, mnx',
        'import mnx, chainer',
        'import mnx.chainer_compat, chainer',
        'import chainer, mnx.chainer_compat',
        'from chainer.training.extensions import LogReport; import chainer',
        'import importlib.util; importlib.util.find_spec("chainer"); import chainer',
    ],
)
def test_any_order(imports, tmp_path):
    run('-W', 'error', '-c', f'{imports}\nimport numpy; chainer.numpy = numpy\n{USE}', cwd=tmp_path)


def test_one_module_whatever_the_order(tmp_path):
    run(
        '-c',
        'import chainer, sys\n'
        'early = sys.modules["mnx.chainer_compat"]\n'
        'from mnx import chainer_compat\n'
        'assert chainer_compat is early',
        cwd=tmp_path,
    )


def test_switch(tmp_path):
    """Off: Chainer fails on NumPy 2. Then on, in the same process: what failed is forgotten."""
    run(
        '-c',
        'import os\n'
        'try:\n'
        '    import chainer\n'
        'except (ImportError, AttributeError):\n'
        '    pass\n'
        'else:\n'
        '    raise SystemExit("imported")\n'
        'import sys\n'
        'assert any(name.startswith("chainer.") for name in sys.modules)\n'
        'os.environ["MNX_CHAINER_COMPAT"] = "1"\n'
        'import chainer\n'
        'assert chainer.Variable is chainer.variable.Variable',
        cwd=tmp_path,
        MNX_CHAINER_COMPAT='0',
    )


def test_start_imports_one_small_module(tmp_path):
    printed = run('-c', 'import sys, json; print(json.dumps(list(sys.modules)))', cwd=tmp_path)
    started = set(json.loads(printed))
    ours = {name for name in started if 'mnx' in name}
    assert ours == {'_mnx_chainer_finder'}
    assert not started & {'chainer', 'numpy', 'importlib.util', 'typing'}


def test_numpy_gains_no_name(tmp_path):
    """NumPy's own submodules, imported by somebody, are the only names that appear in it."""
    run(
        '-c',
        'import numpy, types\n'
        'before = dict(vars(numpy))\n'
        'import chainer, mnx\n'
        'for name, value in vars(numpy).items():\n'
        '    if before.get(name) is not value:\n'
        '        assert isinstance(value, types.ModuleType), name\n'
        '        assert value.__name__ == f"numpy.{name}", name\n'
        'for name in ("float", "sctypes", "int", "object"):\n'
        '    assert not hasattr(numpy, name), name',
        cwd=tmp_path,
    )


@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_workers(method, tmp_path):
    """A worker unpickles Chainer's objects first of all, and never hears of mnx."""
    script = tmp_path / 'script.py'
    script.write_text(
        'import multiprocessing\n'
        'def work(link, out):\n'
        '    import sys\n'
        '    out.put(("mnx" in sys.modules, float(link.W.array.sum())))\n'
        'if __name__ == "__main__":\n'
        '    import chainer\n'
        f'    context = multiprocessing.get_context("{method}")\n'
        '    out = context.Queue()\n'
        '    link = chainer.links.Linear(2, 3, initialW=1)\n'
        '    process = context.Process(target=work, args=(link, out))\n'
        '    process.start()\n'
        '    assert out.get(timeout=100) == (False, 6.0)\n'
        '    process.join()\n'
        '    assert process.exitcode == 0\n'
    )
    run(script, cwd=tmp_path)


def test_other_chainer_is_named_and_works(tmp_path):
    """A Chainer of other text, found first: one warning for each fragment, and no repair."""
    package = tmp_path / 'chainer' / 'functions' / 'math'
    package.mkdir(parents=True)
    for folder in (package, *package.parents[:2]):
        (folder / '__init__.py').touch()
    (package / 'fix.py').write_text('answer = 42\n')
    run(
        '-c',
        'import warnings\n'
        'with warnings.catch_warnings(record=True) as caught:\n'
        '    warnings.simplefilter("always")\n'
        '    from chainer.functions.math import fix\n'
        '[warning] = caught\n'
        'assert warning.category is RuntimeWarning\n'
        'assert "chainer.functions.math.fix" in str(warning.message)\n'
        'assert "chainer==7.8.1" in str(warning.message)\n'
        'assert fix.answer == 42',
        cwd=tmp_path,
    )


def test_left_behind_without_mnx(tmp_path):
    """Site-packages without mnx: Python starts, and Chainer is simply not repaired."""
    (tmp_path / 'chainer.py').write_text('answer = 42\n')
    run(
        '-S',
        '-c',
        f'import sys; sys.path.append({str(STARTUP)!r})\n'
        'import _mnx_chainer_finder, chainer\n'
        'assert chainer.answer == 42',
        cwd=tmp_path,
    )


def test_source_tree_without_installation(tmp_path):
    """No start-up file: then `import mnx` does it."""
    packages = sysconfig.get_path('purelib')
    run(
        '-S',
        '-c',
        f'import sys; sys.path += [{str(ROOT)!r}, {packages!r}]\n'
        'assert "_mnx_chainer_finder" not in sys.modules\n'
        'import mnx, chainer\n'
        'assert mnx.chainer_compat is sys.modules["mnx.chainer_compat"]',
        cwd=tmp_path,
    )
