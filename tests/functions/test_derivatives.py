"""Values, gradients and second derivatives of every function: against one process, and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mnx import functions as MF
from mnx import testing
from mnx.communicators import Communicator
from tests.functions.cases import (
    CASES,
    LINEAR,
    Case,
    Row,
    Variable,
    as_row,
    equal,
    last_root,
    roots,
    unequal,
    variables,
)

SHAPES = {
    'equal': equal,
    'unequal': unequal,
    '0-d': lambda rank, i: (),
    'empty': lambda rank, i: (0, 2),
}
STEP = 2.5e-4

Used = Callable[[int, int], bool]  # whether rank r's loss uses its i-th output


def every(rank: int, i: int) -> bool:
    return True


def partly(rank: int, i: int) -> bool:
    return (rank + i) % 2 == 0


def loss_of(ys: Row, rank: int, used: Used = every) -> Variable:
    """Return this rank's part of the objective: smooth, not linear, different on each rank."""
    loss = chainer.Variable(np.zeros(()))
    for i, y in enumerate(ys):
        if used(rank, i) and y.size:
            w = 1 + (np.arange(y.size).reshape(y.shape) + i + 2 * rank) % 5
            loss += F.sum(w * F.tanh(F.cast(y, 'f8')))
        elif y.requires_grad:  # a token, or an output that no loss uses: still takes part
            (loss,) = MF.pseudo_connect(y, loss)
    return loss


def curvature_part(gs: Row, rank: int) -> Variable:
    """Return this rank's part of a function of all gradients."""
    return sum(
        (F.sum(F.cast(g, 'f8') * (1 + (np.arange(g.size).reshape(g.shape) + i + rank) % 3))
         for i, g in enumerate(gs)), start=chainer.Variable(np.zeros(())))  # fmt: skip


def derivatives(loss: Variable, xs: Row, ranks: list[int]) -> tuple[Row, Row]:
    """Return gradients, and the gradients of a function of the gradients."""
    gs = chainer.grad([loss], xs, enable_double_backprop=True)
    n = len(xs) // len(ranks)
    phi = sum(curvature_part(gs[n * k : n * k + n], rank) for k, rank in enumerate(ranks))
    for x in xs:
        x.cleargrad()
    phi.backward()
    return gs, [x.grad_var for x in xs]


def in_one_process(
    case: Case, X: list[list[np.ndarray]], root: int, used: Used
) -> tuple[list[Row], list[Row], list[Row]]:
    """Return outputs, gradients and second derivatives of all ranks."""
    everyone = [variables(xs) for xs in X]
    flat = [x for xs in everyone for x in xs]
    Y = case.serial(everyone, root)
    loss = sum(loss_of(ys, rank, used) for rank, ys in enumerate(Y))
    loss += sum(0 * F.sum(F.cast(x * x, 'f8')) for x in flat)  # zeros, where Chainer says None
    gs, hs = derivatives(loss, flat, list(range(len(X))))
    n = len(X[0])
    return (
        Y,
        [gs[k : k + n] for k in range(0, len(flat), n)],
        [hs[k : k + n] for k in range(0, len(flat), n)],
    )


def same(found: Variable, expected: Variable, rtol: float) -> None:
    assert isinstance(found.array, np.ndarray)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    scale = max(1, abs(expected.array).max(initial=0))  # terms as large may have cancelled
    np.testing.assert_allclose(found.array, expected.array, rtol=rtol, atol=rtol * scale)


def check(
    comm: Communicator,
    case: Case,
    X: list[list[np.ndarray]],
    root: int,
    used: Used = every,
    layout: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    rtol: float = 1e-12,
) -> None:
    xs = variables([layout(x) for x in X[comm.rank]])
    ys = as_row(case.parallel(comm, root, xs))
    expected, gradients, seconds = in_one_process(case, X, root, used)
    for y, y_serial in zip(ys, expected[comm.rank] or [token()], strict=True):
        same(y, y_serial, rtol)
    gs, hs = derivatives(loss_of(ys, comm.rank, used), xs, [comm.rank])
    for found, serial in ((gs, gradients), (hs, seconds)):
        for g, g_serial in zip(found, serial[comm.rank], strict=True):
            same(g, g_serial, rtol)


def token() -> Variable:
    return chainer.Variable(np.empty(0, 'f4'))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', CASES)
def test_as_in_one_process(comm: Communicator, name: str, shape: str) -> None:
    case = CASES[name]
    if shape == 'unequal' and not case.any_shapes:
        pytest.skip('shapes must be equal')
    for root in roots(name, comm):
        check(comm, case, case.inputs(comm.size, SHAPES[shape]), root)


@pytest.mark.parametrize('name', CASES)
def test_outputs_used_in_part(comm: Communicator, name: str) -> None:
    case = CASES[name]
    for root in roots(name, comm):
        check(comm, case, case.inputs(comm.size, equal), root, used=partly)


@pytest.mark.parametrize('layout', ['fortran', 'strided', 'read-only'])
@pytest.mark.parametrize('name', CASES)
def test_layouts(comm: Communicator, name: str, layout: str) -> None:
    change = {
        'fortran': lambda x: np.asarray(x, order='F'),
        'strided': lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        'read-only': lambda x: np.broadcast_to(x, x.shape),
    }[layout]
    case = CASES[name]
    root = last_root(name, comm)
    check(comm, case, case.inputs(comm.size, equal), root, layout=change)


@pytest.mark.parametrize(('dtype', 'rtol'), [('f2', 1e-3), ('f4', 1e-6)])
@pytest.mark.parametrize('name', CASES)
def test_dtypes_stay(comm: Communicator, name: str, dtype: str, rtol: float) -> None:
    """float16 and float32 results, gradients and second derivatives keep their dtype."""
    case = CASES[name]
    root = last_root(name, comm)
    check(comm, case, case.inputs(comm.size, equal, dtype), root, rtol=rtol * comm.size)


@pytest.mark.parametrize('shape', ['equal', 'unequal', '0-d', 'empty'])
@pytest.mark.parametrize('name', LINEAR)
def test_adjoint(comm: Communicator, name: str, shape: str) -> None:
    case = CASES[name]
    if shape == 'unequal' and not case.any_shapes:
        pytest.skip('shapes must be equal')
    for root in roots(name, comm):

        def f(*xs: Variable, root: int = root) -> Any:
            return case.parallel(comm, root, list(xs))

        testing.assert_adjoint(comm, f, *case.inputs(comm.size, SHAPES[shape])[comm.rank])


@pytest.mark.parametrize('name', CASES)
def test_against_numerical_derivatives(comm: Communicator, name: str) -> None:
    """Along one random direction through the values of all ranks."""
    for root in roots(name, comm):
        check_numerically(comm, CASES[name], root)


def check_numerically(comm: Communicator, case: Case, root: int) -> None:
    X = case.inputs(comm.size, unequal if case.any_shapes else equal)[comm.rank]
    U = [np.random.default_rng(comm.rank).standard_normal(x.shape) for x in X]

    def run(t: float) -> tuple[float, float, Any]:
        xs = variables([x + t * u for x, u in zip(X, U, strict=True)])
        loss = loss_of(as_row(case.parallel(comm, root, xs)), comm.rank)
        gs, hs = derivatives(loss, xs, [comm.rank])
        slopes = [
            sum(float((u * d.array).sum()) for u, d in zip(U, ds, strict=True)) for ds in (gs, hs)
        ]
        phi = float(curvature_part(gs, comm.rank).array)
        return total(comm, float(loss.array)), total(comm, phi), total(comm, *slopes)

    slope, bend = run(0)[2]
    losses, phis = zip(*(run(t * STEP)[:2] for t in (-2, -1, 1, 2)), strict=True)
    assert derivative(losses) == pytest.approx(slope, rel=1e-9, abs=1e-9)
    assert derivative(phis) == pytest.approx(bend, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize('name', ['allreduce-mean', 'reduce-prod', 'allgather', 'shift'])
def test_on_every_communicator(any_comm: Communicator, name: str) -> None:
    case = CASES[name]
    check(any_comm, case, case.inputs(any_comm.size, equal), last_root(name, any_comm))


def derivative(values: Any, h: float = STEP) -> float:
    """Return the slope by four values at -2h, -h, h, 2h: exact up to the fourth power."""
    return float((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h))


def total(comm: Communicator, *values: float) -> Any:
    found = comm.allreduce(np.array(values))
    return float(found[0]) if len(values) == 1 else tuple(found.tolist())
