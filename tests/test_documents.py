"""What the documents and docstrings show is what happens."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import mnx
from tests.launching import mpiexec, starts_jobs

ROOT = Path(__file__).resolve().parents[1]
HAS_EXTRA = all(importlib.util.find_spec(name) for name in ('pydantic', 'yaml'))
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(mnx.__path__, 'mnx.')
    if '.startup' not in info.name and info.name != 'mnx.transports.mpi_emergency'
    if HAS_EXTRA or not info.name.startswith('mnx.recipes.')
)


@pytest.mark.parametrize('name', MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@starts_jobs
def test_the_script_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes a folder `result`
    (script,) = python_blocks(ROOT / 'README.md')
    assert script.count('\n') < 28
    last = output_of(script).strip().splitlines()[-1].split()
    assert (last[0], float(last[2]) > 0.9) == ('5', True)


@pytest.mark.parametrize('guide', sorted(ROOT.glob('docs/guide/*.md')), ids=lambda path: path.stem)
@starts_jobs
def test_the_script_in_a_guide(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(guide)
    assert blocks
    output_of('\n'.join(blocks))


def python_blocks(document: Path) -> list[str]:
    return re.findall(r'^```python\n(.*?)^```$', document.read_text(), re.DOTALL | re.MULTILINE)


def output_of(script: str) -> str:
    """Run a script on two ranks; return what it wrote, without colours and cursor moves."""
    Path('script.py').write_text(script)
    job = mpiexec(2, Path('script.py').resolve())
    assert job.returncode == 0, job.stdout
    return re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', job.stdout)


def test_links_in_the_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('*/*/README.md')]
    assert len(documents) > 5
    for document in documents:
        for target in re.findall(r'\]\((?!https?:)([^)#]+)', document.read_text()):
            assert (document.parent / target).exists(), f'{document.name}: {target}'
