"""Every code block of the documents is run, or stands in a list here that says why not."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.launching import ROOT, START_AT_ANY_TIME, alone, mpiexec, starts_jobs

pytestmark = alone

PRINTED = 'what commands print: times, versions and places are those of one machine'
DRAWN = 'a drawing'
CLUSTER = 'needs a cluster, or installs packages'

# python: run as it stands, by tests/test_documents.py (the README, each guide) and below (index)
# text: a message of mnx, compared with the source below
# py: ends in an error or never, see below; {...}: a directive of Sphinx, run by `make docs`
NOT_RUN = {
    ('README.md', ''): PRINTED,
    ('README.md', 'sh'): 'installs packages, as `make` does for every test',
    ('docs/architecture.md', ''): DRAWN,
    ('docs/benchmarks.md', ''): 'written by benchmarks/plot.py',
    ('docs/decisions/0007-gpus-in-layers.md', ''): DRAWN,
    ('docs/guide/allreduce_in_the_graph.md', ''): DRAWN,
    ('docs/guide/checkpoints.md', ''): DRAWN,
    ('docs/guide/clusters.md', 'sh'): CLUSTER,
    (
        'docs/guide/coming_from_chainermn.md',
        'sh',
    ): 'tests/cli/test_as_chainermn.py runs whole scripts',
    ('docs/guide/command_line.md', ''): PRINTED,
    ('docs/guide/data_parallel.md', 'sh'): 'starts the script that the tests start, too',
    ('docs/guide/functions.md', ''): DRAWN,
    ('docs/guide/hangs.md', ''): PRINTED,
    ('docs/guide/model_parallel.md', ''): PRINTED,
    ('docs/guide/tensor_parallel.md', ''): PRINTED,
    ('docs/guide/train.md', ''): PRINTED,
    ('docs/guide/train.md', 'yaml'): 'tests/recipes/test_guide.py reads them',
    ('docs/guide/troubleshooting.md', ''): 'what a launcher prints',
    ('docs/guide/troubleshooting.md', 'sh'): 'asks for versions only',
}


class Block(NamedTuple):
    """A fenced block: where it stands, what its first line calls it, its text."""

    page: str
    kind: str
    text: str


def blocks() -> list[Block]:
    pages = [ROOT / 'README.md', *sorted(ROOT.glob('docs/**/*.md'))]
    return [
        Block(page.relative_to(ROOT).as_posix(), found[2].strip(), found[3])
        for page in pages
        if '_build' not in page.parts
        for found in re.finditer(
            r'^( *)```([^\n`]*)\n(.*?)^\1```$', page.read_text(), re.DOTALL | re.MULTILINE
        )
    ]


def of_kind(kind: str, page: str = '') -> list[Block]:
    return [b for b in blocks() if b.kind == kind and b.page.startswith(page)]


def test_each_block_is_run_or_has_a_reason() -> None:
    left = set()
    for block in blocks():
        is_run = block.kind == 'python' and re.match(r'README|docs/guide/|docs/index', block.page)
        if not is_run and block.kind not in ('text', 'py') and not block.kind.startswith('{'):
            left.add((block.page, block.kind))
    assert left == set(NOT_RUN)


@starts_jobs
def test_the_lines_on_the_first_page() -> None:
    (block,) = of_kind('python', 'docs/index.md')
    job = mpiexec(2, f'import chainer, mnx\ntrain = list(range(8))\n{block.text}')
    assert job.returncode == 0, job.stdout


# --- blocks that end in an error or never ---------------------------------------------------------

PRELUDE = f"""{START_AT_ANY_TIME}
import time
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import optimizers
import mnx
"""
CREATE = 'comm = mnx.create_communicator()\n'
ENDINGS = {
    'docs/guide/hangs.md': [
        'waits for ever, as the page says',
        ('model = L.Linear(3, 2)', 'the copies of the model have drifted apart'),
        ('n_batches = 11', 'at the end of its program'),
        ('time.sleep(3600)', 'Others wait for rank 2 to come: look at that line.'),
    ],
    'docs/guide/command_line.md': [
        "the head of a script of ChainerMN's; tests/cli/test_as_chainermn.py runs a whole one",
    ],
}


def test_each_failing_block_is_known() -> None:
    found = [block.page for block in of_kind('py')]
    assert {page: found.count(page) for page in found} == {
        page: len(endings) for page, endings in ENDINGS.items()
    }


@pytest.mark.parametrize(
    ('page', 'number'),
    [(p, i) for p, es in ENDINGS.items() for i, e in enumerate(es) if isinstance(e, tuple)],
)
@starts_jobs
def test_a_failing_block_fails_as_the_page_says(page: str, number: int) -> None:
    start, message = ENDINGS[page][number]
    block = of_kind('py', page)[number]
    assert start in block.text
    assert message in (ROOT / page).read_text()
    prelude = PRELUDE if CREATE in block.text else PRELUDE + CREATE
    timeout = '2' if 'sleep' in start else '600'
    job = mpiexec(4, prelude + block.text, env={'MNX_TIMEOUT': timeout})
    assert job.returncode != 0
    assert message in job.stdout


# --- messages that are quoted ---------------------------------------------------------------------


@functools.cache
def messages() -> list[str]:
    """Return the strings in mnx; what is filled in is a zero byte."""
    return [m for m in _strings() if len(re.sub(r'\W', '', m)) > 10]


def _strings() -> Iterator[str]:
    for file in sorted((ROOT / 'mnx').rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else '\0' for v in node.values]
                yield ''.join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def is_quoted_from(message: str, quote: str) -> bool:
    """Tell whether `quote`, in which ... stands for anything, is a part of `message`."""
    pattern = '.*'.join(map(re.escape, quote.split('...')))
    return re.search(pattern, message, re.DOTALL) is not None


def test_quotes() -> None:
    assert is_quoted_from('resume: \0 is damaged (\0).', '...: ... is damaged (...)')
    assert not is_quoted_from('resume: \0 is damaged (\0).', 'resume: it is damaged')


QUOTES = [block.text.strip() for block in of_kind('text')]


@pytest.mark.parametrize('quote', QUOTES, ids=range(len(QUOTES)))
def test_a_quoted_message_is_in_the_source(quote: str) -> None:
    assert any(is_quoted_from(message, quote) for message in messages())


TABLE = 'They wait for one another at different places.', 'All wait at the same place: each recv'


@pytest.mark.parametrize('sentence', TABLE)
def test_a_sentence_of_the_report_is_in_the_source(sentence: str) -> None:
    assert sentence in Path(ROOT / 'docs/guide/troubleshooting.md').read_text()
    assert any(sentence in message for message in messages())
