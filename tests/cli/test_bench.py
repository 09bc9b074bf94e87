"""`mnx bench allreduce`: complete lines, numbers that belong together, faults counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnx.cli import bench, self_test
from mnx.cli.bench import Plan
from mnx.communicators import Communicator
from tests.cli.commands import alone, document_in, mnx, needs_extra, on_terminal
from tests.launching import starts_jobs

HAS_EXTRA = pytest.mark.skipif("not __import__('importlib').util.find_spec('typer')")
SHORT = ('-b', '8', '-e', '4K', '-f', '512', '-n', '2', '-w', '1')


@starts_jobs
@needs_extra
def test_all_communicators_beside_raw_mpi():
    job = mnx(2, 'bench', 'allreduce', *SHORT, '-d', 'double', '--json')
    assert job.returncode == 0, job.stdout
    lines = document_in(job.stdout)
    by = [bench.RAW, *self_test.names(with_nccl=False)]
    assert [(line['size'], line['by']) for line in lines] == [
        (size, name) for size in (8, 4096) for name in by
    ]
    raw_us = 0.0
    for line in lines:
        assert (line['count'], line['type'], line['wrong']) == (line['size'] // 8, 'double', 0)
        assert line['algbw'] == pytest.approx(line['size'] / line['time_us'] / 1e3)
        assert line['busbw'] == pytest.approx(line['algbw'])  # 2 * (n - 1) / n is 1 for n = 2
        raw_us = line['time_us'] if line['by'] == bench.RAW else raw_us
        if line['by'] != bench.RAW:
            assert line['times_raw'] == pytest.approx(line['time_us'] / raw_us)


@starts_jobs
@needs_extra
def test_the_table_has_one_line_for_each():
    job = mnx(2, 'bench', 'allreduce', *SHORT, env={'TERM': 'dumb'})  # no colours
    assert job.returncode == 0, job.stdout
    # Open MPI's ranks have a terminal of their own, and so tables with lines
    rows = [line.split() for line in job.stdout.splitlines() if line.strip(' ─')]
    title = next(i for i, row in enumerate(rows) if row[0] == 'side')
    assert rows[0] == ' '.join(bench.COLUMNS).split()
    names = self_test.names(with_nccl=False)
    assert len(rows[1:title]) == 2 * (1 + len(names))
    head, *lines = rows[title + 1 :]
    assert head == ['size', '(B)', *names, 'fastest']
    assert [line[0] for line in lines] == ['8', '4096']
    for _, *ratios, fastest in lines:
        assert ratios[names.index(fastest)] == min(ratios, key=float)


@starts_jobs
@needs_extra
def test_sizes_by_steps():
    job = alone('bench', 'allreduce', '-b', '8', '-e', '24', '-i', '8', '-n', '1', '--json')
    assert [line['size'] for line in json.loads(job.stdout)] == [8, 16, 24]


@starts_jobs
@needs_extra
def test_alone_on_a_terminal():
    status, seen = on_terminal(1, 'bench', 'allreduce', *SHORT)
    assert status == 0, seen
    assert ' local ' in seen
    assert all(name in ' '.join(seen.split()) for name in bench.COLUMNS)


@starts_jobs
@needs_extra
@pytest.mark.parametrize(
    'words', [('-b', '1x'), ('-f', '1'), ('-f2', '-i8'), ('-i', '0'), ('-d', 'int'), ('-n', '0')]
)
def test_wrong_use(words: tuple[str, str]):
    process = alone('bench', 'allreduce', *words)
    assert (process.returncode, process.stdout) == (2, '')
    assert process.stderr


def test_wrong_elements_of_all_ranks_are_counted(comm: Communicator):
    expected = np.array([0.0, 1.0, 3.0])
    found = np.array([0, 1 + 1e-3, np.nan]) if comm.rank == 0 else expected
    assert bench._count_wrong(comm, found, expected) == 2
    assert bench._count_wrong(comm, expected * (1 + 1e-16), expected) == 0


def test_a_wrong_mean_is_counted(comm: Communicator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comm, 'multi_node_mean_grad', lambda model: None)
    line = bench._of_communicator(comm, comm, Plan([40], 'double', 1, 0), 40, None)
    # unlike ranks need a mean; of an odd number the middle one has it by chance
    assert line.wrong == (comm.size - comm.size % 2) * 5
