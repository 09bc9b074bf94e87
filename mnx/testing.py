"""For the tests of code that uses mnx: does a model train on n ranks as it does on one?

Run such tests as ``mpiexec -n 2 python -m pytest``; every rank runs all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import chainer
import numpy as np

from mnx.arrays import Array
from mnx.communicators import Communicator
from mnx.communicators.factory import build
from mnx.optimizers import create_multi_node_optimizer
from mnx.transports.mpi import MpiChannels, world

Batch = tuple[Array, ...]


def assert_replicated(comm: Communicator, model: chainer.Link) -> None:
    """Check that the parameters of `model` are equal on all ranks, bit by bit.

    Collective: all ranks call it, and all fail if one does.

    Raises
    ------
    AssertionError
        Names the parameters that differ.
    """
    own = {
        name: None if p.array is None else (p.dtype.str, p.shape, p.array.tobytes())
        for name, p in model.namedparams()
    }
    everyone = comm.allgather_obj(own)
    names = sorted({name for values in everyone for name in values})
    differing = [n for n in names if any(v.get(n) != everyone[0].get(n) for v in everyone)]
    assert not differing, f'not equal on all {comm.size} ranks: {", ".join(differing)}'


def create_on_nodes(
    communicator_name: str, node_sizes: Sequence[int], **config: Any
) -> Communicator:
    """Create a communicator whose ranks believe to be on several nodes, though they share one.

    Collective: all ranks of the job call it.

    Parameters
    ----------
    communicator_name : str
        As for `mnx.create_communicator`.
    node_sizes : sequence of int
        Ranks on each node, in the order of ranks; further ranks are on one more node.
    **config
        ``allreduce_grad_dtype``, ``batched_copy``.
    """
    size, rank = world()
    nodes = [i for i, n in enumerate([*node_sizes, size]) for _ in range(n)]
    comm = build(communicator_name, MpiChannels(host=f'node{nodes[rank]}'))
    for name, value in config.items():
        comm.set_config(name, value)
    return comm


def part_of(comm: Communicator, batch: Batch) -> Batch:
    """Return this rank's part of a global batch: contiguous, sizes that differ by one at most.

    >>> import mnx
    >>> part_of(mnx.create_communicator('local'), (np.arange(3),))
    (array([0, 1, 2]),)
    """
    n = len(batch[0])
    mine = slice(n * comm.rank // comm.size, n * (comm.rank + 1) // comm.size)
    return tuple(x[mine] for x in batch)


def assert_transparent(
    comm: Communicator,
    make_model: Callable[[], chainer.Link],
    make_optimizer: Callable[[], chainer.Optimizer],
    batches: Sequence[Batch],
    *,
    rtol: float,
    seed: int = 0,
) -> None:
    """Check that n ranks train a model as one process does.

    Trains one model on the whole batches with plain Chainer and another one on this rank's
    parts of them with the multi-node optimizer, and compares all parameters.

    Collective: all ranks call it.

    Parameters
    ----------
    comm : Communicator
    make_model : callable
        Returns a link; ``link(*batch)`` is the mean loss over the batch. It must not depend on
        the other samples of the batch (as batch normalisation does) nor on random numbers.
    make_optimizer : callable
    batches : sequence of tuples of arrays, first axis: samples
        The same on all ranks.
    rtol : float
        Largest difference allowed, relative to the largest value of each parameter.
    seed : int
        Seeds NumPy's global random state before the serial model is made; rank r's model is
        made from ``seed + r``, so that only rank 0's start from the same values.
    """
    serial, model = _seeded(make_model, seed), _seeded(make_model, seed + comm.rank)
    plain = make_optimizer().setup(serial)
    actual = make_optimizer()  # this function compares the ranks itself
    optimizer = create_multi_node_optimizer(actual, comm, check_every=0).setup(model)
    for batch in batches:
        plain.update(serial, *batch)
        optimizer.update(model, *part_of(comm, batch))
    assert optimizer.t == plain.t, f'{plain.t} updates became {optimizer.t}'
    assert_replicated(comm, model)
    expected = dict(serial.namedparams())
    for name, param in model.namedparams():
        difference = relative_difference(param.array, expected[name].array)
        assert difference <= rtol, f'{name} differs by {difference:.3g} of its largest value'


def assert_adjoint(
    comm: Communicator,
    f: Callable[..., Any],
    *xs: Array | None,
    rtol: float | None = None,
    seed: int = 0,
) -> None:
    """Check that the backward pass of a linear function is its adjoint: <Ax, y> = <x, A*y>.

    Both products are summed over all ranks, since each rank holds a part of x and of y.

    Collective: all ranks call it, and all fail if one does.

    Parameters
    ----------
    comm : Communicator
    f : callable
        A: linear in all its arguments together; takes variables, returns one or a tuple of them.
    *xs : array or None
        This rank's part of x, as `f` takes it; None is passed on as it is.
    rtol : float, optional
        Largest difference allowed, relative to the sum of the products' absolute terms. Default:
        100 times the precision of the coarsest dtype.
    seed : int
        Each rank draws its part of y from it.

    Examples
    --------
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> assert_adjoint(comm, lambda x: mnx.functions.allreduce(comm, 2 * x), np.arange(3.0))
    """
    variables = [None if x is None else chainer.Variable(x) for x in xs]
    found = f(*variables)
    ys = list(found) if isinstance(found, (list, tuple)) else [found]
    generator = np.random.default_rng([seed, comm.rank])
    for y in ys:
        y.grad = np.asarray(generator.standard_normal(y.shape), y.dtype)
    pairs = [(y.array, y.grad) for y in ys]  # backward takes the gradients away
    chainer.backward(ys)
    back = [(x.array, x.grad) for x in variables if x is not None and x.grad is not None]
    precision = max((np.finfo(a.dtype).eps for a, _ in pairs + back if a.size), default=0)
    rtol = 100 * float(comm.allreduce(np.array(float(precision)), 'max')) if rtol is None else rtol
    (left, left_size), (right, right_size) = comm.allreduce(
        np.array([_products(pairs), _products(back)])
    ).tolist()
    assert abs(left - right) <= rtol * max(left_size, right_size), (
        f'<Ax, y> = {left:.17g}, but <x, A*y> = {right:.17g}: '
        'the backward pass is not the adjoint of the forward pass'
    )


def _products(pairs: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    """Return the sum of <a, b> over the pairs, and the sum of its absolute terms."""
    terms = [np.multiply(a, b, dtype=np.float64) for a, b in pairs]
    return float(sum(t.sum() for t in terms)), float(sum(abs(t).sum() for t in terms))


def relative_difference(x: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest value of `expected`.

    >>> relative_difference(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    0.5
    """
    largest = float(abs(expected).max(initial=0.0))
    difference = float(abs(x - expected).max(initial=0.0))
    return difference / largest if largest else difference


def get_device(device_id: int | None = None, use_chainerx: bool = False) -> Any:
    """Return the device for a test: ``@numpy``, or ``@cupy:device_id``.

    With `use_chainerx`, ``native:0`` or ``cuda:device_id`` of an installed ChainerX.
    """
    on_cpu, on_gpu = ('native:0', 'cuda:{}') if use_chainerx else ('@numpy', '@cupy:{}')
    return chainer.get_device(on_cpu if device_id is None else on_gpu.format(device_id))


def _seeded(make_model: Callable[[], chainer.Link], seed: int) -> chainer.Link:
    np.random.seed(seed)  # noqa: NPY002 - Chainer's initialisers draw from it
    return make_model()
