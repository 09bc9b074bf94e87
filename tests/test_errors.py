"""Every error is an `MnxError` and the built-in it specialises; their texts have one form."""

from __future__ import annotations

import pickle
import re

import pytest

import mnx
from mnx import errors

BUILT_IN = {
    errors.ArgumentError: ValueError,
    errors.MismatchError: ValueError,
    errors.DtypeError: TypeError,
    errors.DataError: RuntimeError,
    errors.MissingDataError: FileNotFoundError,
    errors.ClosedError: RuntimeError,
    errors.LaunchError: RuntimeError,
    errors.TransportError: RuntimeError,
    errors.MissingPackageError: ImportError,
    errors.RemoteError: RuntimeError,
}


def classes() -> list[type]:
    """All exceptions of the module but the base."""
    found = [
        c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == 'mnx.errors'
    ]
    return [c for c in found if c is not errors.MnxError]


def test_none_is_forgotten() -> None:
    assert set(classes()) == set(BUILT_IN)


@pytest.mark.parametrize('cls', classes(), ids=lambda cls: cls.__name__)
def test_each_is_both(cls: type[Exception]) -> None:
    assert issubclass(cls, mnx.MnxError)
    assert issubclass(cls, BUILT_IN[cls])
    assert cls.__doc__


@pytest.mark.parametrize('cls', [*classes(), mnx.DataSizeError], ids=lambda cls: cls.__name__)
def test_its_text_arrives_on_another_rank(cls: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(cls('what is wrong')))
    assert (type(error), str(error)) == (cls, 'what is wrong')


def test_the_tree_that_is_drawn_is_the_tree_that_is() -> None:
    """Read the picture: depth by indentation, the built-in in brackets."""
    above: dict[int, type] = {0: errors.MnxError}
    drawn = re.findall(r'^    ([│ ]*)[├└]── (\w+) *(?:\((\w+)\))?', errors.__doc__, re.MULTILINE)
    assert len(drawn) == len(BUILT_IN)
    for indent, name, built_in in drawn:
        depth, cls = len(indent) // 4 + 1, getattr(errors, name)
        assert above[depth - 1] in cls.__bases__
        if built_in:
            assert built_in in {base.__name__ for base in cls.__bases__}
        above[depth] = cls


def test_the_form_of_a_text() -> None:
    text = errors.explain(
        'scatter', 'one array per rank', 4, '3 arrays', rank=2, size=4, advice='Pass a tuple'
    )
    expected = (
        'scatter: one array per rank, expected 4 but got 3 arrays (rank 2 of 4). Pass a tuple.'
    )
    assert text == expected
