"""What all commands share: who speaks, wrong use, missing libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.commands import alone, hide, mnx, needs_extra
from tests.launching import mpiexec, starts_jobs


@starts_jobs
@needs_extra
@pytest.mark.parametrize('n', [1, 2])
def test_an_unknown_command_is_told_once_with_status_2(n: int):
    job = mnx(n, 'inform')
    assert job.returncode == 2, job.stdout
    assert job.stdout.count("No such command 'inform'") == 1
    assert '[mnx]' not in job.stdout  # the except hook has nothing to add


@starts_jobs
@needs_extra
def test_an_unknown_option_has_status_2():
    job = mnx(2, 'info', '--jsn')
    assert (job.returncode, job.stdout.count('--jsn')) == (2, 1), job.stdout


@starts_jobs
@needs_extra
@pytest.mark.parametrize('words', [('info',), ('info', '--json'), ('check',)], ids=' '.join)
def test_a_reader_who_leaves_is_no_error(words: tuple[str, ...]):
    gone, output = os.pipe()
    os.close(gone)
    with open(output, 'wb') as closed:
        process = alone(*words, stdout=closed)
    assert process.returncode == 141
    assert 'Traceback' not in process.stderr
    assert 'BrokenPipe' not in process.stderr


@starts_jobs
@needs_extra
def test_help_is_printed_once():
    job = mnx(2, '--help')
    assert (job.returncode, job.stdout.count('Usage:')) == (0, 1), job.stdout


@starts_jobs
@needs_extra
def test_no_command_is_wrong_use():
    process = alone()
    assert process.returncode == 2
    assert 'Usage:' in process.stdout


@starts_jobs
@pytest.mark.parametrize('n', [1, 2])
def test_without_its_libraries_it_says_what_to_install(n: int, tmp_path: Path):
    job = mnx(n, 'info', env=hide(tmp_path, 'typer'))
    assert job.returncode == 3, job.stdout
    assert job.stdout.count("pip install 'mnx[cli]'") == 1
    assert 'Traceback' not in job.stdout


@starts_jobs
def test_mnx_itself_needs_no_libraries_of_the_command_line(tmp_path: Path):
    (tmp_path / 'script.py').write_text('import mnx.cli\nprint("imported")\n')
    job = mpiexec(1, tmp_path / 'script.py', env=hide(tmp_path, 'typer', 'rich'))
    assert 'imported' in job.stdout
