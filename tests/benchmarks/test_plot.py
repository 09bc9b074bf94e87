import doctest
import importlib.util
import json
import re
import subprocess
import sys

import pytest

from tests.benchmarks.running import BENCHMARKS
from tests.launching import clean_environment

MACHINE = {'cores': '2', 'processor': 'one of ours', 'Python': '3.12.1', 'load': '0.5'}


def row(candidate, us, **more):
    return {'candidate': candidate, 'us': us, 'ratio': us / 1000, 'quartiles': [1, 1], **more}


RESULTS = {
    'exchange': [
        row('raw', 1000, set='mlp', ranks=2, bytes=4000, held=None),
        row('flat', 1250, set='mlp', ranks=2, bytes=4000, held=7.2e6),
    ],
    'cluster_exchange': [
        row(
            name,
            us,
            set='mlp',
            shape='2x2',
            link='1gbit',
            bytes=8,
            us_of_least=us / 800,
            wire_of_least=1.5,
        )
        for name, us in (('raw', 1000), ('flat', 1250))
    ],
    'point_to_point': [
        row(name, us, bytes=nbytes)
        for nbytes in (4, 65536)
        for name, us in (('raw', 1000), ('mnx', 1250))
    ],
    'collectives': [
        row(name, us, call=call, bytes=nbytes, ranks=2)
        for call, nbytes in (('bcast', 4), ('bcast', 65536), ('barrier', 0))
        for name, us in (('raw', 1000), ('mnx', 1250))
    ],
}


def plot(folder, load='0.5'):
    pytest.importorskip('matplotlib')
    files = []
    for name, rows in RESULTS.items():
        files.append(folder / f'{name}.json')
        machine = {**MACHINE, 'load': load}
        result = {'benchmark': name, 'command': f'run {name}', 'machine': machine, 'rows': rows}
        files[-1].write_text(json.dumps(result))
    out = folder / 'docs'
    out.mkdir(exist_ok=True)
    command = [sys.executable, BENCHMARKS / 'plot.py', *files, '--out', out]
    subprocess.run(command, env=clean_environment(), check=True)
    return (out / 'benchmarks.md').read_text(), out


def test_every_number_and_figure_is_on_the_page(tmp_path):
    page, out = plot(tmp_path)
    assert page.count('1.25 ms (1.25x)') == 7
    assert '| mlp | 2 | 7.2 |' in page
    assert '| 1gbit | 2x2 | mlp | 1.25 | 1.56 |' in page
    assert '| bcast | 64 KiB | 2 | 1.00 ms | 1.25 ms (1.25x) |' in page
    assert '| processor | one of ours |' in page
    assert 'The machine was busy' not in page
    for name in RESULTS:
        assert f'run {name}' in page
    figures = re.findall(r'\]\((benchmarks/\w+\.svg)\)', page)
    assert len(figures) == len(RESULTS)
    assert all((out / figure).read_text().startswith('<?xml') for figure in figures)


def test_the_same_results_give_the_same_files(tmp_path):
    plot(tmp_path)
    first = {path: path.read_bytes() for path in (tmp_path / 'docs').rglob('*.*')}
    plot(tmp_path)
    assert first == {path: path.read_bytes() for path in (tmp_path / 'docs').rglob('*.*')}
    assert len(first) == 1 + len(RESULTS)


def test_a_busy_machine_is_told(tmp_path):
    assert plot(tmp_path, load='7')[0].count('The machine was busy') == len(RESULTS)


@pytest.mark.parametrize('name', ['plot', 'timing', 'cluster_exchange'])
def test_examples_in_docstrings(name, monkeypatch):
    if name == 'plot':
        pytest.importorskip('matplotlib')
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f'benchmarks_{name}', BENCHMARKS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
