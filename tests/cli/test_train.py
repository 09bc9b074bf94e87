"""`mnx train` as a user starts it: one result, one voice, one exit status."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from mnx.cli.train import Wishes, run
from mnx.communicators import Communicator
from mnx.datasets import IMAGES
from tests.cli.commands import alone, hide, mnx, needs_extra
from tests.launching import ROOT, starts_jobs

MLP = ROOT / 'examples' / 'mnist' / 'mlp.yaml'

needs_recipes = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('pydantic', 'yaml', 'sklearn')),
    reason='needs the extras `cli` and `examples`',
)
pytestmark = needs_recipes


def quick(folder: Path, text: str = '', **changes: str) -> Path:
    """Write a recipe of a second; `changes` are words that take the place of others."""
    text = text or MLP.read_text()
    text = text.replace('{name: digits}', '{name: digits, fraction: 0.2}')
    text = text.replace('epochs: 15', 'epochs: 2')
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / 'recipe.yaml'
    path.write_text(text)
    return path


def said_by_mnx(text: str) -> list[str]:
    """Return the lines of mnx; launchers may say that a job has ended, but no rank a traceback."""
    assert 'Traceback' not in text
    assert '[mnx]' not in text  # the except hook has nothing to add
    return [line for line in text.splitlines() if line.startswith('mnx: ')]


def accuracy_of(text: str) -> float:
    (found,) = re.findall(r'^test: .*accuracy (\d\.\d+)', text, re.MULTILINE)
    return float(found)


@starts_jobs
@needs_extra
def test_the_first_example_learns_the_digits():
    process = alone('train', MLP)
    assert process.returncode == 0, process.stderr
    assert accuracy_of(process.stdout) >= 0.97
    assert process.stdout.count('epoch ') == 15


@starts_jobs
@needs_extra
@pytest.mark.limit(600)
def test_all_ways_end_with_one_row_and_the_same_numbers(tmp_path: Path):
    path, rows = quick(tmp_path), tmp_path / 'rows'
    ways = {
        (1, 1): (1, ()),
        (2, 1): (2, ('-p', '-m', '--grid', '2x1')),
        (1, 2): (2, ('--modelpar',)),
    }
    for n, flags in ways.values():
        job = mnx(n, 'train', *flags, '-r', 5, '-o', rows, path)
        assert job.returncode == 0, job.stdout
        assert job.stdout.count('epoch ') == 2, job.stdout  # rank 0 alone
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row['datapar'], row['modelpar']) for row in found] == list(ways)
    assert {row['seed'] for row in found} == {5}
    for name in ('train/loss', 'test/loss'):
        assert [row[name] for row in found] == pytest.approx([found[0][name]] * 3, rel=1e-3)
    assert len({row['test/accuracy'] for row in found}) == 1


@starts_jobs
@needs_extra
def test_a_snapshot_of_two_processes_goes_on_in_one(tmp_path: Path):
    file = tmp_path / 'snapshot.npz'
    path = quick(tmp_path, **{'seed: 0': f'seed: 0\nsnapshot: {{file: {file}}}'})
    job = mnx(2, 'train', '--modelpar', path)
    assert job.returncode == 0, job.stdout
    path = quick(tmp_path, **{'epochs: 2': 'epochs: 3'})
    process = alone('train', '--resume', file, path)
    assert process.returncode == 0, process.stderr
    assert re.findall(r'^epoch +(\d)', process.stdout, re.MULTILINE) == ['3']


@starts_jobs
@needs_extra
def test_a_wrong_file_is_told_once_by_line_and_key_with_status_2(tmp_path: Path):
    path = quick(tmp_path, **{'units: 101': 'unitz: 101'})
    job = mnx(3, 'train', '--datapar', path)
    assert job.returncode == 2, job.stdout
    (line,) = said_by_mnx(job.stdout)
    assert line.startswith(f'mnx: {path}:18: layers[0].unitz: unknown key')


@starts_jobs
@needs_extra
def test_several_processes_without_a_flag_are_told_once_with_status_2():
    job = mnx(2, 'train', MLP)
    assert job.returncode == 2, job.stdout
    (line,) = said_by_mnx(job.stdout)
    assert '2 processes were started, expected 1' in line


@starts_jobs
@needs_extra
def test_without_its_libraries_it_says_what_to_install(tmp_path: Path):
    process = alone('train', MLP, env=hide(tmp_path, 'yaml'))
    assert process.returncode == 3
    assert 'needs yaml' in process.stderr
    assert "pip install 'mnx[cli]'" in process.stderr


@starts_jobs
@needs_extra
def test_description_of_ranks_that_are_not_there():
    process = alone('train', '--describe', '--grid', '1x4', MLP)
    assert process.returncode == 0, process.stderr
    lines = [' '.join(line.split()) for line in process.stdout.splitlines()]
    assert 'dense1 101 6,565 output gather 12,928' in lines
    assert 'dense2 10 1,020 output gather 1,280 sum 12,928' in lines
    assert '1 128 1,931 1,931 0.02 27,136 0' in lines
    assert not any('epoch' in line for line in lines)


@starts_jobs
@needs_extra
@pytest.mark.parametrize('n', [1, 2])
def test_a_description_as_json_holds_what_the_tables_do(n: int):
    job = mnx(n, 'train', '--describe', '--json', '--grid', '2x2', MLP)
    assert job.returncode == 0, job.stdout
    told = json.loads(job.stdout[job.stdout.index('{') :])
    assert (told['datapar'], told['modelpar'], told['batch_size']) == (2, 2, 128)
    assert 'scikit-learn' in told['data']
    first, second = told['layers']
    assert (first['returns'], first['parameters'], first['split_by']) == ([101], 6565, 'output')
    assert [(m['when'], m['kind'], m['numbers']) for m in second['messages']] == [
        ('forward', 'gather', 640),
        ('backward', 'sum', 6464),
    ]
    assert [(r['rank'], r['samples']) for r in told['ranks']] == [(i, 64) for i in range(4)]
    assert sum(r['parameters'] for r in told['ranks']) == 2 * (6565 + 1020)


def test_json_without_a_description_is_wrong_use(
    comm: Communicator, capsys: pytest.CaptureFixture[str]
):
    assert run(Wishes(str(MLP), datapar=True, as_json=True), comm) == 2
    assert capsys.readouterr().err.count('--describe') == (comm.rank == 0)


# --- broken files, in this process on all ranks ---------------------------------------------------

BROKEN = [
    ('units: 101', 'unitz: 101', 18, 'layers[0].unitz'),
    ('type: dense, units: 10,', 'type: danse, units: 10,', 19, 'layers[1].type'),
    ('batch_size: 128', 'batch_size: many', 8, 'batch_size'),
    ('units: 101, ', '', 18, 'layers[0].units'),
    ('units: 101', 'units: 1e12', 18, 'layers[0].units'),
    ('units: 101', 'units: 1000000000000', 18, 'layers[0].units'),
    ('units: 101', 'units: 2000000000', 18, 'layers[0]'),
    ('units: 10,', 'units: 9,', 19, 'layers[1]'),
    ('epochs: 15', 'epochs: 15\nepochs: 3', 10, 'epochs'),
    ('init: *fan, act', 'init: *fun, act', 18, "found undefined alias 'fun'"),
    (
        '{name: digits}',
        '!!python/object/apply:os.mkdir [made]',
        7,
        '!!python/object/apply:os.mkdir',
    ),
    ('cost: cross_entropy', 'cost: cross_entropie', 20, 'cost'),
    ('momentum: 0.9', 'momentum: .nan', 15, 'learning_rules.momentum.momentum'),
    ('activation: relu', 'activation: [relu]', 18, 'layers[0].activation'),
    ('name: digits', 'name: digits, shape: [1, 8, 9]', 7, 'data.shape'),
    ('optimizer: *momentum\n', '', 7, 'optimizer'),
    ('seed: 0', 'seed: 0\nsnapshot: {file: .}', 11, 'snapshot.file: .: cannot be written'),
    (
        'seed: 0',
        'seed: 0\nsnapshot: {file: setup.py/a/b}',
        11,
        'snapshot.file: setup.py/a/b: cannot',
    ),
    ('{name: digits}', f'{{name: digits, folder: {ROOT}}}', 7, 'data.folder'),
]


@pytest.mark.parametrize('number', range(len(BROKEN)))
def test_a_broken_file_is_one_line_of_one_rank(
    comm: Communicator, shared_path: Path, number: int, capsys: pytest.CaptureFixture[str]
):
    old, new, line, key = BROKEN[number]
    path = shared_path / 'broken.yaml'
    if comm.rank == 0:
        text = MLP.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    comm.barrier()
    status = run(Wishes(str(path), datapar=True), comm)
    assert comm.allgather_obj(status) == [2] * comm.size
    said = comm.allgather_obj(capsys.readouterr().err)
    assert said[1:] == [''] * (comm.size - 1)
    assert said[0].startswith(f'mnx: {path}:{line}: {key}'), said[0]
    assert said[0].count('\n') == 1
    assert not Path('made').exists()


@pytest.mark.parametrize(
    ('name', 'advice'),
    [
        ('mnist', ('folder: DIR', "load_images('mnist', download=True)")),
        ('fashion-mnist', ('folder: DIR', "load_images('fashion-mnist', download=True)")),
        ('digits', ('pip install scikit-learn',)),
        ('auto', ('pip install scikit-learn', 'folder: DIR')),
    ],
)
def test_data_that_are_not_there_are_one_line_in_the_words_of_a_recipe(
    comm: Communicator,
    shared_path: Path,
    name: str,
    advice: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr('mnx.datasets.images._SOURCES', dict.fromkeys(IMAGES[1:], ()))
    path = shared_path / 'nothing.yaml'
    if comm.rank == 0:
        path.write_text(MLP.read_text().replace('name: digits', f'name: {name}'))
    comm.barrier()
    assert run(Wishes(str(path), datapar=True), comm) == 2
    said = capsys.readouterr().err
    if comm.rank == 0:
        assert said.startswith(
            f'mnx: {path}:7: data.name: load_images: found no data for {name!r}.'
        )
        assert said.count('\n') == 1
        assert all(words in said for words in advice)
        assert '--' not in said  # flags that `mnx train` does not have


def test_a_folder_without_images_is_one_line_in_the_words_of_a_recipe(
    comm: Communicator, shared_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = shared_path / 'empty.yaml'
    if comm.rank == 0:
        text = MLP.read_text()
        path.write_text(text.replace('name: digits', f'name: mnist, folder: {shared_path}'))
    comm.barrier()
    assert run(Wishes(str(path), datapar=True), comm) == 2
    said = capsys.readouterr().err
    if comm.rank == 0:
        assert said.startswith(f'mnx: {path}:7: data.folder: ')
        assert said.count('\n') == 1
        assert ' --' not in said


def test_a_batch_smaller_than_the_ranks(
    comm: Communicator, shared_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = shared_path / 'small.yaml'
    if comm.rank == 0:
        path.write_text(MLP.read_text().replace('batch_size: 128', 'batch_size: 1'))
    comm.barrier()
    status = run(Wishes(str(path), describe=True, grid='2x1'), comm)
    said = capsys.readouterr().err
    assert status == 2
    if comm.rank == 0:
        assert said.startswith(f'mnx: {path}:8: batch_size: expected 2 or more')
