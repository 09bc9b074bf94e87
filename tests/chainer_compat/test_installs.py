"""What an installation puts on a machine: from a wheel, and editable; and that it all goes again.

Built here by the very calls that pip and uv make (PEP 517 and 660), installed by pip into a new
environment that sees this one's packages, but runs none of its start-up files.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

import mnx
from mnx import kernels
from tests.chainer_compat.interpreters import run
from tests.launching import ROOT, starts_jobs

AT_SITE_ROOT = {'mnx-chainer.pth', '_mnx_chainer_finder.py'}


def at_least(name: str, version: str) -> bool:
    try:
        return Version(metadata.version(name)) >= Version(version)
    except metadata.PackageNotFoundError:
        return False


pytestmark = [
    starts_jobs,
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / 'setup.py').exists(), reason='no source tree'),
    pytest.mark.skipif(not at_least('setuptools', '77'), reason='no setuptools to build with'),
    pytest.mark.skipif(not at_least('pip', '22.3'), reason='no pip to install with'),
]


def build(kind: str, folder: Path) -> Path:
    """Build 'wheel' or 'editable' from a copy of the sources in `folder`; return the wheel."""
    source = folder / 'source'
    ignored = shutil.ignore_patterns(
        '__pycache__', '.*', 'build', '*.egg-info', 'tests', 'docs', '*.so'
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    dist = folder / 'dist'
    dist.mkdir()
    hook = f'from setuptools import build_meta; build_meta.build_{kind}({str(dist)!r})'
    run('-c', hook, cwd=source)
    [wheel] = dist.iterdir()
    return wheel


def environment(folder: Path) -> tuple[Path, Path]:
    """Make an environment and return its Python and its site-packages."""
    venv.create(folder, with_pip=False)
    python = folder / 'bin' / 'python'
    [site] = folder.glob('lib/python*/site-packages')
    (site / 'outer.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return python, site


def ours(site: Path) -> set[str]:
    return {p.name for p in site.iterdir() if 'mnx' in p.name}


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_install_use_uninstall(kind, tmp_path):
    wheel = build(kind, tmp_path)
    python, site = environment(tmp_path / 'env')

    run('-m', 'pip', '--python', python, 'install', '--no-deps', wheel, cwd=tmp_path)
    assert ours(site) >= AT_SITE_ROOT
    run('-c', 'import chainer, mnx', python=python, cwd=tmp_path)
    place = run('-c', 'import mnx; print(mnx.__file__)', python=python, cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(site if kind == 'wheel' else tmp_path / 'source')

    run('-m', 'pip', '--python', python, 'uninstall', '--yes', 'mnx', cwd=tmp_path)
    assert ours(site) == set()


def test_wheel_holds_the_package_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv('MNX_KERNELS', '0')
    wheel = build('wheel', tmp_path)
    assert wheel.name == f'mnx-{mnx.__version__}-py3-none-any.whl'
    assert contents(wheel) == sources()


def contents(wheel: Path) -> set[str]:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert any(name.endswith('LICENSE') for name in names)
    return {name for name in names if '.dist-info/' not in name}


def sources() -> set[str]:
    home = Path(mnx.__file__).parent
    modules = {
        f'mnx/{path.relative_to(home).as_posix()}'
        for path in home.rglob('*.py')
        if path.parent.name != 'startup'
    }
    data = {f'mnx-{mnx.__version__}.data/purelib/{name}' for name in AT_SITE_ROOT}
    return modules | data | {'mnx/py.typed', 'mnx/_kernels.pyi'}


def test_loops_in_c_are_there_if_they_can_be_built():
    """Or all tests of them would be skipped."""
    compiler = shutil.which(sysconfig.get_config_var('CC').split()[0])
    headers = Path(sysconfig.get_path('include'), 'Python.h').exists()
    wanted = os.environ.get('MNX_KERNELS') != '0'
    assert kernels.built or not (compiler and headers and wanted)


@pytest.mark.skipif(not kernels.built, reason='mnx was installed without a C compiler')
def test_wheel_with_loops_in_c(tmp_path):
    wheel = build('wheel', tmp_path)
    assert contents(wheel) == sources() | {f'mnx/_kernels{sysconfig.get_config_var("EXT_SUFFIX")}'}
    python, _ = environment(tmp_path / 'env')
    run('-m', 'pip', '--python', python, 'install', '--no-deps', wheel, cwd=tmp_path)
    program = 'from mnx import kernels; print(kernels.built)'
    assert run('-c', program, python=python, cwd=tmp_path).strip() == 'True'


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_no_compiler_is_no_error(kind, tmp_path, monkeypatch):
    monkeypatch.setenv('CC', str(tmp_path / 'no_such_compiler'))
    wheel = build(kind, tmp_path)
    assert not [name for name in contents(wheel) if '_kernels.c' in name]
    assert not list(tmp_path.glob('source/mnx/*.so'))
    python, _ = environment(tmp_path / 'env')
    run('-m', 'pip', '--python', python, 'install', '--no-deps', wheel, cwd=tmp_path)
    program = 'from mnx import kernels; print(kernels.built)'
    assert run('-c', program, python=python, cwd=tmp_path).strip() == 'False'
