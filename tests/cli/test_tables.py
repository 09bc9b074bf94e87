"""Tables keep every word, however narrow the place."""

from __future__ import annotations

import pytest

from mnx.cli import tables

pytest.importorskip('rich')


def printed(capsys: pytest.CaptureFixture[str], *args, **kwargs) -> list[str]:
    tables.print_table(*args, **kwargs)
    return capsys.readouterr().out.splitlines()


def test_columns_in_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('mnx.cli.speech.speaks', lambda: True)
    rows = [('a', '1'), ('[b]', '22')]
    assert printed(capsys, ('what', 'n'), rows, right=('n',)) == [
        'what   n',
        'a      1',
        '[b]   22',
    ]


def test_a_long_text_is_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('mnx.cli.speech.speaks', lambda: True)
    lines = printed(capsys, ('what', 'found'), [('a', 'word ' * 60)])
    assert ' '.join(lines).split().count('word') == 60
    assert max(map(len, lines)) <= tables.WIDTH


def test_numbers_are_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('mnx.cli.speech.speaks', lambda: True)
    columns = [f'column {i}' for i in range(40)]
    (_, line) = printed(capsys, columns, [[str(10**9)] * 40], right=columns)
    assert line.split() == [str(10**9)] * 40


def test_only_one_rank_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('mnx.cli.speech.speaks', lambda: False)
    assert printed(capsys, ('what',), [('a',)]) == []
