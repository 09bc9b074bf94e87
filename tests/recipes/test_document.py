"""YAML as plain data: what is no plain data is told by line."""

from __future__ import annotations

import math

import pytest
import yaml

from mnx.errors import ArgumentError
from mnx.recipes.document import LARGEST, EntryError, locate, parse

TEXT = """\
a: &x {b: [1, {c: 2}], d: 1e-3}
e:
  - *x
  - <<: *x
    d: 4
"""


def test_values_are_plain() -> None:
    found = parse(TEXT, 'f.yaml').value
    x = {'b': [1, {'c': 2}], 'd': 0.001}
    assert found == {'a': x, 'e': [x, {**x, 'd': 4}]}


NUMBERS = {
    '1e-3': 1e-3,
    '-2.5E+3': -2500.0,
    '1.e2': 100.0,
    '.5e1': 5.0,
    '1e': '1e',
    '012': 12,  # ten in YAML 1.1
    '0o12': 10,
    '0xfF': 255,
    '-7': -7,
    '+7': 7,
    '1:30': '1:30',  # ninety in YAML 1.1
    '1:30.5': '1:30.5',
    '0b11': '0b11',
    '1_000': '1_000',
    '3.': 3.0,
    '-.5': -0.5,
    '.': '.',
    '-.INF': -math.inf,
}


@pytest.mark.parametrize('text', NUMBERS)
def test_numbers_are_those_of_yaml_1_2(text: str) -> None:
    found, expected = parse(f'a: {text}', 'f').value['a'], NUMBERS[text]
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ('path', 'place'),
    [
        (('a',), (1, 'a')),
        (('e', 0), (1, 'e[0]')),  # an alias: where the anchor is
        (('e', 1), (4, 'e[1]')),
        (('e', 1, 'd'), (5, 'e[1].d')),
        (('e', 1, 'b'), (1, 'e[1].b')),
        (('e', 1, 'b', 1, 'c'), (1, 'e[1].b[1].c')),
        (('e', 1, 'missing'), (4, 'e[1].missing')),
        (('a', 'd', 0), (1, 'a.d')),  # a number that stands for a list of two
        ((), (1, '')),
    ],
)
def test_places(path: tuple[str | int, ...], place: tuple[int, str]) -> None:
    root = yaml.compose(TEXT, yaml.SafeLoader)
    yaml.SafeLoader('').construct_document(root)  # resolves <<
    assert locate(root, path) == place


BILLION = '\n'.join(
    ['a0: &a0 [1, 1]', *(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 12))]
)

WRONG = {
    'a: !!python/object/apply:os.system [echo]': '1: !!python/object/apply:os.system: a recipe',
    'a: 1\nb: !obj:layers.Layer {}': '2: !obj:layers.Layer: a recipe holds plain values only',
    'a: 1\nb: 2\na: 3': '3: a: the key is on line 1 already',
    'a:\n  - b: 1\n    b: 1': '3: a[0].b: the key is on line 2 already',
    'a: &x [*x]': '1: an alias leads back into what it stands in',
    'a: &x {b: {c: *x}}': '1: an alias leads back',
    'a: *x': "1: found undefined alias 'x'",
    'a: [1\nb: 2': '2: ',
    '': '1: the file is empty',
    '# nothing': '1: the file is empty',
    'a: 1\n---\nb: 2': '2: ',
    'a: "\x07"': '1: ',
    'a: 1\n\tb: 2': '2: ',
    '{[1]: 2}': '1: ',
    'a: 2001-13-45': '1: ',
    '[' * 5000: '1: ',
    BILLION: f'5: more than {LARGEST} values, aliases written out',
}


@pytest.mark.parametrize('number', range(len(WRONG)))
def test_mistakes_are_told_in_one_line(number: int) -> None:
    text, expected = list(WRONG.items())[number]
    with pytest.raises(ArgumentError) as caught:
        parse(text, 'f.yaml')
    assert str(caught.value).startswith(f'f.yaml:{expected}')
    assert '\n' not in str(caught.value)


def test_no_code_is_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for tag in ('!!python/object/apply:os.mkdir', '!!python/name:os.mkdir', '!!python/module:os'):
        with pytest.raises(ArgumentError):
            parse(f'a: {tag} [made]', 'f')
    assert list(tmp_path.iterdir()) == []


def test_problems_come_in_the_order_of_the_file() -> None:
    found = parse(TEXT, 'f')
    problems = [EntryError((*path, 'd'), 'wrong') for path in (('e', 1), ('e', 0), ('a',))]
    assert str(found.error(*problems)).splitlines() == ['f:1: e[0].d: wrong', 'f:5: e[1].d: wrong']


def test_a_word_for_infinity_is_a_number_and_a_mapping_may_be_empty() -> None:
    found = parse('a: .inf\nb: {}\nc:', 'f').value
    assert math.isinf(found['a'])
    assert (found['b'], found['c']) == ({}, None)
