"""A plain `loss.backward()` leaves the gradients of one process, the same bits on all ranks."""

from __future__ import annotations

import copy
import pickle

import chainer
import chainer.functions as F
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError
from tests.gradients.models import CASES, MLP, Case, batch, gradients, mlp

PASSES = 4
TINY = 100  # bytes of a bucket: several of them


def serial_gradients(case: Case, size: int, seed: int) -> dict[str, np.ndarray | None]:
    model = case.model()
    model.cleargrads()
    case.serial_loss(model, size, seed).backward()
    return gradients(model)


def assert_close(
    found: dict[str, np.ndarray | None], expected: dict[str, np.ndarray | None], tol: float = 1e-12
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            np.testing.assert_allclose(found[name], gradient, rtol=tol, atol=tol, err_msg=name)


def assert_same_bits(comm: Communicator, found: dict[str, np.ndarray | None]) -> None:
    own = {name: None if g is None else g.tobytes() for name, g in found.items()}
    assert all(other == own for other in comm.allgather_obj(own))


@pytest.mark.parametrize('bucket_bytes', [1, TINY, 2**22])
@pytest.mark.parametrize('name', CASES)
def test_gradients_are_those_of_one_process(
    comm: Communicator, name: str, bucket_bytes: int
) -> None:
    case = CASES[name]
    model = case.distributed(comm, seed=comm.rank)  # rank 0's values count
    mnx.inject_allreduce(model, comm, bucket_bytes=bucket_bytes)
    for seed in range(PASSES):
        model.cleargrads()
        case.loss(model, *batch(comm.rank, seed=seed), comm.rank).backward()
        found = gradients(model)
        assert_same_bits(comm, found)
        assert_close(found, serial_gradients(case, comm.size, seed))


@pytest.mark.parametrize('name', CASES)
def test_early_or_late_the_bits_are_the_same(comm: Communicator, name: str) -> None:
    """What overlaps, beside the same exchange after backward."""
    case, found = CASES[name], []
    for early in (True, False):
        model = case.distributed(comm)
        injection = mnx.inject_allreduce(model, comm, bucket_bytes=TINY)
        if not early:
            injection.exchange._is_full = lambda bucket: False  # type: ignore[method-assign]
        for seed in range(PASSES):
            model.cleargrads()
            case.loss(model, *batch(comm.rank, seed=seed), comm.rank).backward()
        found.append({k: None if g is None else g.tobytes() for k, g in gradients(model).items()})
        started = injection.exchange.started_early
        assert started == 0 if not early else started > 0 or 'branch' in name or 'parts' in name
    assert found[0] == found[1]
