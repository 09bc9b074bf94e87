"""What a component returns, as a message and as a result that depends on messages."""

from __future__ import annotations

from typing import Any, NamedTuple

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx.errors import DtypeError
from mnx.links.outputs import connected, received, sendable

X, Y = (chainer.Variable(np.full(2, value, 'f4')) for value in (1, 2))


def test_one_or_several_can_be_sent() -> None:
    assert sendable(X, 'f') == [X]
    assert sendable((X, Y), 'f') == sendable([X, Y], 'f') == [X, Y]
    assert received([X]) is X
    assert received([X, Y]) == (X, Y)


@pytest.mark.parametrize(
    ('wrong', 'what'),
    [
        (None, 'a NoneType in it'),
        ((X, 'a'), 'a str in it'),
        ((), 'an empty tuple'),
        ([X, (Y,)], 'a tuple in it'),
        ({'y': X}, 'a dict in it'),
        (chainer.Variable(), 'a Variable in it'),
    ],
)
def test_what_cannot_be_sent(wrong: Any, what: str) -> None:
    with pytest.raises(DtypeError, match=f'link 3: cannot send .* got {what}'):
        sendable(wrong, 'link 3')


def test_every_variable_at_any_depth_depends_on_the_token() -> None:
    x = chainer.Variable(np.ones(2, 'f4'))
    token = chainer.Variable(np.zeros(0, 'f4'))
    output = {'loss': F.sum(x), 'pair': [(x * 2, 'word'), None], 'array': np.zeros(3, 'f4')}
    found = connected(token, output)
    assert isinstance(found['pair'], list)
    assert isinstance(found['pair'][0], tuple)
    assert found['pair'][0][1] == 'word'
    assert found['pair'][1] is None
    np.testing.assert_array_equal(found['loss'].array, 2)
    np.testing.assert_array_equal(found['pair'][0][0].array, [2, 2])
    found['loss'].backward()
    np.testing.assert_array_equal(x.grad, [1, 1])  # zeros for those that were not used
    assert token.grad is not None  # so backward gets to what the token stands for


class Result(NamedTuple):
    loss: Any
    count: int


def test_a_named_tuple_keeps_its_names() -> None:
    token = chainer.Variable(np.zeros(0, 'f4'))
    found = connected(token, Result(F.sum(X), 3))
    assert type(found) is Result
    assert found.count == 3
    found.loss.backward()
    assert token.grad is not None
