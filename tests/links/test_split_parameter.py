"""A parameter in parts: what it refuses; saving and training are in the tests of the links."""

from __future__ import annotations

import copy
import pickle

import chainer
import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError
from mnx.links.split_parameter import Part, SplitParameter, digest_of


def split(comm: Communicator, whole: np.ndarray, axis: int = 0) -> SplitParameter:
    return SplitParameter(whole, Part(comm, axis, None), whole.shape)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('length', [1, 2, 7, 8])
def test_the_parts_are_the_whole(comm: Communicator, axis: int, length: int) -> None:
    """Also of fewer rows than there are ranks."""
    shape = (length, 3) if axis == 0 else (3, length)
    whole = np.random.RandomState(5).rand(*shape).astype('f4')
    param = split(comm, whole, axis)
    parts = comm.allgather_obj(param.array)
    np.testing.assert_array_equal(np.concatenate(parts, axis), whole)
    np.testing.assert_array_equal(param.whole_of(), whole)


@pytest.mark.needs_ranks(2)
def test_other_random_numbers_are_an_error_on_all(comm: Communicator) -> None:
    before = np.random.get_state()
    np.random.seed(comm.rank)
    with pytest.raises(MismatchError, match='equal random numbers'):
        SplitParameter(chainer.initializers.Normal(), Part(comm, 0, None), (5, 3))
    np.random.set_state(before)


def test_it_cannot_be_pickled(comm: Communicator) -> None:
    param = split(comm, np.zeros((4, 3), 'f4'))
    with pytest.raises(ArgumentError, match=r'mnx\.links\.save_npz'):
        pickle.dumps(param)


def test_a_deep_copy_is_one_of_its_own(comm: Communicator) -> None:
    whole = np.arange(12, dtype='f4').reshape(4, 3)
    param = split(comm, whole)
    param.grad = np.ones_like(param.array)
    copied = copy.deepcopy(param)
    copied.array[...] += 1
    copied.grad[...] = 5
    np.testing.assert_array_equal(param.whole_of(), whole)
    np.testing.assert_array_equal(copied.whole_of(), whole + 1)
    np.testing.assert_array_equal(param.grad, np.ones_like(param.array))


def test_a_digest_tells_values_and_shapes_apart() -> None:
    x = np.arange(6, dtype='f4')
    assert digest_of(x) == digest_of(x.copy())
    assert digest_of(x.reshape(2, 3)) == digest_of(np.asfortranarray(x.reshape(2, 3)))
    assert len({digest_of(y) for y in (x, x.reshape(2, 3), x.reshape(3, 2), x + 1)}) == 4
