"""What a communicator is beside its messages: a thing that is copied, printed, and not pickled."""

from __future__ import annotations

import copy
import pickle

import pytest

import mnx
from mnx.communicators import Communicator
from mnx.communicators.base import float_dtype
from mnx.errors import ArgumentError, DtypeError


def test_copies_share_it(any_comm: Communicator) -> None:
    assert copy.copy(any_comm) is any_comm
    assert copy.deepcopy({'comm': [any_comm]})['comm'][0] is any_comm


def test_it_cannot_be_sent_to_another_process(any_comm: Communicator) -> None:
    if any_comm.mpi_comm is None:
        assert pickle.loads(pickle.dumps(any_comm)).size == 1
        return
    for sent in (any_comm, mnx.links.MultiNodeBatchNormalization(3, any_comm)):
        with pytest.raises(DtypeError, match='pickle: a communicator is the end of this process'):
            pickle.dumps(sent)
        with pytest.raises(DtypeError, match='pickle: a communicator is the end of this process'):
            any_comm.bcast_obj(sent)


def test_says_what_it_is(any_comm: Communicator) -> None:
    comm = any_comm
    assert repr(comm) == f'<mnx {comm.name} communicator, rank {comm.rank} of {comm.size}>'


@pytest.mark.parametrize('name', ['float16', 'f8', 'e', float], ids=str)
def test_dtypes_of_gradients(name: object) -> None:
    assert float_dtype(name).kind == 'f'
    assert float_dtype(None) is None


@pytest.mark.parametrize('name', ['int32', 'complex64', bool, 'no_such', 7], ids=str)
def test_no_dtypes_of_gradients(name: object) -> None:
    with pytest.raises(ArgumentError, match='allreduce_grad_dtype'):
        float_dtype(name)
