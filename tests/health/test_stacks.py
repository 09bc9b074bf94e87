from __future__ import annotations

import json
import sys

import pytest

import mnx
from mnx.health.stacks import describe


def _caller() -> tuple[str, str]:
    """Describe whoever calls the function that calls this."""
    frame = sys._getframe(1).f_back
    assert frame is not None
    return describe(frame)


def test_own_code() -> None:
    frame = sys._getframe()
    seen, line = describe(frame), frame.f_lineno
    assert seen == ('test_own_code', f'{__file__}:{line}')


def test_code_in_a_library_and_who_called_it() -> None:
    seen = []

    def default(value: object) -> int:
        seen.append(_caller())
        return 1

    encoder = json.JSONEncoder(default=default)
    frame = sys._getframe()
    _, line = list(encoder.iterencode([{1}])), frame.f_lineno
    call, site = seen[0]
    assert call == '_iterencode'
    library, own = site.split(', from ')
    assert 'json' in library
    assert own == f'{__file__}:{line}'


def test_the_function_of_mnx_that_was_called() -> None:
    """However deep inside mnx the thread is."""
    seen = []

    class Sent:
        def __reduce__(self) -> tuple[type, tuple[()]]:
            seen.append(_caller())
            return dict, ()

    comm = mnx.create_communicator('local')
    frame = sys._getframe()
    _, line = comm.send_obj(Sent(), 0), frame.f_lineno
    assert seen == [('send_obj', f'{__file__}:{line}')]


def test_the_end_of_a_block_has_words() -> None:
    seen = []

    class SomeError(Exception):
        def __str__(self) -> str:
            seen.append(_caller())
            return 'failed'

    comm = mnx.create_communicator('local')
    with pytest.raises(SomeError), comm.together('check'):
        raise SomeError
    call, site = seen[0]
    assert call == 'the end of a with block'
    assert site.startswith(f'{__file__}:')
