"""`double_buffering`: as one process that applies each gradient one update late."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import optimizer_hooks
from chainer.serializers import load_hdf5, load_npz, save_hdf5, save_npz

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, ClosedError, MismatchError
from mnx.optimizers import DoubleBufferingOptimizer
from mnx.testing import assert_replicated, part_of

Arrays = tuple[np.ndarray, np.ndarray]

STEPS = 8


class Net(chainer.Chain):
    def __init__(self, n_in: int | None = 6) -> None:
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', np.dtype('f8')):
            self.l1 = L.Linear(n_in, 5)
            self.l2 = L.Linear(5, 3)
            self.unused = L.Linear(2, 2)

    def forward(self, x: np.ndarray, t: np.ndarray) -> chainer.Variable:
        return F.softmax_cross_entropy(self.l2(F.tanh(self.l1(x))), t)


def whole(step: int, n: int = 13) -> Arrays:
    rng = np.random.RandomState(step)
    return rng.standard_normal((n, 6)), rng.randint(0, 3, n).astype('i4')


def net(seed: int = 0, **kwds: Any) -> Net:
    np.random.seed(seed)
    return Net(**kwds)


def adam() -> chainer.Optimizer:
    return chainer.optimizers.Adam(alpha=0.01)


def momentum() -> chainer.Optimizer:
    return chainer.optimizers.MomentumSGD(lr=0.1)


def wrap(
    comm: Communicator,
    model: chainer.Link,
    make: Callable[[], chainer.Optimizer] = adam,
    **kwds: Any,
) -> DoubleBufferingOptimizer:
    optimizer = mnx.create_multi_node_optimizer(make(), comm, double_buffering=True, **kwds)
    assert isinstance(optimizer, DoubleBufferingOptimizer)
    optimizer.setup(model)
    return optimizer


class LateByOne:
    """The twin: one process, all of the data, each gradient applied one update late."""

    def __init__(self, model: chainer.Link, actual: chainer.Optimizer) -> None:
        self.model, self.actual = model, actual.setup(model)
        self.waiting: tuple[dict[str, np.ndarray | None], float | None] | None = None

    def update(self, x: np.ndarray, t: np.ndarray) -> None:
        self.model.cleargrads()
        self.model(x, t).backward(loss_scale=self.actual._loss_scale)
        gradients = {name: p.grad for name, p in self.model.namedparams()}
        self.flush()
        self.waiting = gradients, self.actual._loss_scale

    def flush(self) -> None:
        if self.waiting is not None:
            for name, param in self.model.namedparams():
                param.grad, param._loss_scale = self.waiting[0][name], self.waiting[1]
            self.actual.update(None)
        self.waiting = None


def assert_equal_models(model: chainer.Link, other: chainer.Link, tol: float = 1e-12) -> None:
    expected = dict(other.namedparams())
    for name, param in model.namedparams():
        np.testing.assert_allclose(
            param.array, expected[name].array, rtol=tol, atol=tol, err_msg=name
        )


def bits(model: chainer.Link) -> dict[str, bytes]:
    return {name: param.array.tobytes() for name, param in model.namedparams()}


@pytest.mark.parametrize('make', [adam, momentum])
def test_as_the_twin(training_comm: Communicator, make: Callable[[], chainer.Optimizer]) -> None:
    comm = training_comm
    model, other = net(comm.rank), net()
    optimizer, twin = wrap(comm, model, make), LateByOne(other, make())
    for each in (optimizer, twin.actual):
        each.add_hook(optimizer_hooks.WeightDecay(0.01))
        each.add_hook(optimizer_hooks.GradientClipping(0.3))
    for step in range(STEPS):
        optimizer.update(model, *part_of(comm, whole(step)))
        twin.update(*whole(step))
        assert optimizer.t == step
        assert_equal_models(model, other)
    assert_replicated(comm, model)
    optimizer.flush()
    twin.flush()
    optimizer.flush()  # nothing is applied twice
    assert optimizer.t == STEPS
    assert_equal_models(model, other)


class Shared(chainer.Chain):
    """One link under two names, and two parameters whose gradients are one array."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope(), chainer.using_config('dtype', np.dtype('f8')):
            self.l1 = self.l2 = L.Linear(6, 6)
            self.b, self.c = (chainer.Parameter(np.zeros(6)) for _ in range(2))

    def forward(self, x: np.ndarray, t: np.ndarray) -> chainer.Variable:
        y = self.l2(F.tanh(self.l1(x)))
        return F.softmax_cross_entropy(y + F.broadcast_to(self.b + self.c, y.shape), t)


def test_shared_links_and_gradients(training_comm: Communicator) -> None:
    comm = training_comm
    model, other = Shared(), Shared()
    comm.bcast_data(model)
    other.copyparams(model)
    optimizer, twin = wrap(comm, model, momentum), LateByOne(other, momentum())
    for step in range(3):
        optimizer.update(model, *part_of(comm, whole(step)))
        twin.update(*whole(step))
    optimizer.flush()
    twin.flush()
    assert abs(model.c.array).max() > 1e-3
    assert_equal_models(model, other)


@pytest.mark.needs_ranks(2)
def test_ranks_that_do_not_flush_together(comm: Communicator) -> None:
    model = net()
    optimizer = wrap(comm, model)
    optimizer.update(model, *part_of(comm, whole(0)))
    with pytest.raises(MismatchError, match=r'rank 1 .*flush in_flight=True'):
        optimizer.flush() if comm.rank == 1 else optimizer.update(model, *part_of(comm, whole(1)))
    assert optimizer.t == 0


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('zero_fill', [False, True])
def test_a_parameter_that_one_rank_uses(comm: Communicator, zero_fill: bool) -> None:
    model = net()
    optimizer = wrap(comm, model, zero_fill=zero_fill)
    x, t = part_of(comm, whole(0))

    def loss() -> chainer.Variable:
        return model(x, t) + (F.sum(model.unused.W) if comm.rank == 0 else 0)

    if zero_fill:
        optimizer.update(loss)
    else:
        with pytest.raises(MismatchError, match='/unused/W'):
            optimizer.update(loss)


@pytest.mark.needs_ranks(2)
def test_it_compares_as_often_as_it_is_told(comm: Communicator) -> None:
    model = net()
    optimizer = wrap(comm, model, check_every=5 + comm.rank)
    with pytest.raises(MismatchError, match='check_every=6'):
        optimizer.update(model, *part_of(comm, whole(0)))


def test_the_first_update_leaves_no_gradients(comm: Communicator) -> None:
    """Those of a rank are no mean, and somebody might look at them."""
    model = net()
    wrap(comm, model).update(model, *part_of(comm, whole(0)))
    assert all(param.grad is None for param in model.params())


def test_a_weight_of_its_own(comm: Communicator) -> None:
    """Of the last rank alone, so its part of the data is all there is."""
    model, other = net(), net()
    last = comm.rank == comm.size - 1
    optimizer = wrap(comm, model, weight=lambda x, t: 2.0 if last else 0.0)
    optimizer.update(model, *part_of(comm, whole(0)))
    optimizer.flush()
    twin = adam().setup(other)
    twin.update(other, *comm.bcast_obj(part_of(comm, whole(0)), root=comm.size - 1))
    assert_equal_models(model, other)


def test_gradients_of_another_model_are_dropped(comm: Communicator) -> None:
    model, other = net(), net()
    optimizer = wrap(comm, model)
    optimizer.update(model, *part_of(comm, whole(0)))
    optimizer.setup(other)
    before = bits(other)
    optimizer.update(other, *part_of(comm, whole(1)))
    assert bits(other) == before
    assert optimizer.t == 0


def test_it_is_not_the_undelayed_one(comm: Communicator) -> None:
    model, other = net(), net()
    late = wrap(comm, model)
    plain = mnx.create_multi_node_optimizer(adam(), comm).setup(other)
    for step in range(4):
        for each, target in ((late, model), (plain, other)):
            each.update(target, *part_of(comm, whole(step)))
    assert abs(model.l1.W.array - other.l1.W.array).max() > 1e-3


def test_given_gradients(comm: Communicator) -> None:
    model, other = net(), net()
    optimizer, twin = wrap(comm, model), LateByOne(other, adam())
    for step in range(STEPS):
        model.cleargrads()
        model(*part_of(comm, whole(step, 4 * comm.size))).backward()
        optimizer.update()
        twin.update(*whole(step, 4 * comm.size))
    assert_equal_models(model, other)


def test_a_loss_scale_that_changes(comm: Communicator) -> None:
    """Gradients are divided by what they were multiplied by, not by what is in use later."""
    model, other = net(), net()
    optimizer, twin = wrap(comm, model, momentum), LateByOne(other, momentum())
    for step in range(STEPS):
        for actual in (optimizer.actual_optimizer, twin.actual):
            actual.loss_scaling(scale=2.0 ** (step % 3))
        optimizer.update(model, *part_of(comm, whole(step)))
        twin.update(*whole(step))
    assert_equal_models(model, other)


def test_lazy_parameters(comm: Communicator) -> None:
    model, other = net(comm.rank, n_in=None), net(n_in=None)
    optimizer, twin = wrap(comm, model), LateByOne(other, adam())
    np.random.seed(comm.rank)
    for step in range(4):
        optimizer.update(model, *part_of(comm, whole(step)))
    np.random.seed(0)
    for step in range(4):
        twin.update(*whole(step))
    assert_replicated(comm, model)
    assert_equal_models(model, other, 1e-6)  # initialised late, they are float32


def test_without_zero_fill_unused_parameters_keep_out(comm: Communicator) -> None:
    model = net()
    optimizer = wrap(comm, model, zero_fill=False)
    before = model.unused.W.array.copy()
    for step in range(3):
        optimizer.update(model, *part_of(comm, whole(step)))
    np.testing.assert_array_equal(model.unused.W.array, before)


def test_gradients_move_on_while_others_are_computed(comm: Communicator) -> None:
    model = net()
    optimizer = wrap(comm, model)
    optimizer.update(model, *part_of(comm, whole(0)))
    tested, flight = [], optimizer._flight.pending
    flight.test = lambda: tested.append(1)
    optimizer.update(model, *part_of(comm, whole(1)))
    assert len(tested) >= 8  # functions of forward and backward


def test_evaluation_between_updates(comm: Communicator) -> None:
    model, other = net(), net()
    optimizer, twin = wrap(comm, model), LateByOne(other, adam())
    for step in range(4):
        optimizer.update(model, *part_of(comm, whole(step)))
        twin.update(*whole(step))
        with chainer.no_backprop_mode(), chainer.using_config('train', False):
            losses = comm.allgather_obj(float(model(*whole(9)).array))
        assert len(set(losses)) == 1
        comm.allreduce(np.ones(1000))
        optimizer.wait()
    assert_equal_models(model, other)


# --- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize('steps', [0, 1, 3])
@pytest.mark.parametrize('where', ['all ranks', 'rank 0'])
@pytest.mark.parametrize('form', ['npz', 'hdf5'])
def test_saved_and_loaded_it_goes_on_with_the_same_bits(
    comm: Communicator, shared_path: Path, steps: int, where: str, form: str
) -> None:
    if form == 'hdf5':
        pytest.importorskip('h5py')
    save, load = {'npz': (save_npz, load_npz), 'hdf5': (save_hdf5, load_hdf5)}[form]
    model = net()
    optimizer = wrap(comm, model)
    for step in range(STEPS):
        if step == steps:
            if comm.rank == 0:
                save(shared_path / f'model.{form}', model)
                save(shared_path / f'optimizer.{form}', optimizer)
            comm.barrier()
        optimizer.update(model, *part_of(comm, whole(step)))
    resumed = net(7)
    anew = wrap(comm, resumed)
    anew.update(resumed, *part_of(comm, whole(99)))  # what is in flight then is dropped
    if where == 'all ranks' or comm.rank == 0:
        load(shared_path / f'model.{form}', resumed)
        load(shared_path / f'optimizer.{form}', anew)
    else:
        anew._compared = False  # as all ranks must load; these load something else
    for step in range(steps, STEPS):
        anew.update(resumed, *part_of(comm, whole(step)))
    assert bits(resumed) == bits(model)
    assert anew.t == optimizer.t


def test_a_file_without_gradients_in_flight(comm: Communicator, shared_path: Path) -> None:
    model = net()
    plain = adam().setup(model)
    plain.update(model, *whole(0))
    if comm.rank == 0:
        save_npz(shared_path / 'plain.npz', plain)
    comm.barrier()
    optimizer = wrap(comm, model)
    with pytest.raises(ArgumentError, match='saved without double_buffering'):
        load_npz(shared_path / 'plain.npz', optimizer)


def test_a_trainer_is_resumed(comm: Communicator, shared_path: Path) -> None:
    def train(iterations: int, resume: bool) -> dict[str, bytes]:
        model = net(comm.rank)
        data = chainer.datasets.TupleDataset(*part_of(comm, whole(0, 40)))
        updater = chainer.training.updaters.StandardUpdater(
            chainer.iterators.SerialIterator(data, 4), wrap(comm, model)
        )
        trainer = chainer.training.Trainer(updater, (iterations, 'iteration'), out=shared_path)
        trainer.extend(mnx.extensions.snapshot(comm, 'snapshot'), trigger=(5, 'iteration'))
        if resume:
            mnx.extensions.resume(shared_path / 'snapshot', trainer, comm)
        trainer.run()
        return bits(model)

    uninterrupted = train(9, False)
    train(5, False)
    assert train(9, True) == uninterrupted


# --- errors --------------------------------------------------------------------------------------


def test_finalize_with_gradients_in_flight(comm: Communicator) -> None:
    own = mnx.create_communicator('naive')
    model = net()
    optimizer = wrap(own, model)
    optimizer.update(model, *part_of(comm, whole(0)))
    own.finalize()
    optimizer.wait()
    with pytest.raises(ClosedError):
        optimizer.update(model, *part_of(comm, whole(1)))


@pytest.mark.needs_ranks(2)
def test_ranks_that_differ(comm: Communicator) -> None:
    model = net()
    optimizer = wrap(comm, model, momentum)
    optimizer.update(model, *part_of(comm, whole(0)))
    optimizer.lr = 0.1 + comm.rank
    with pytest.raises(MismatchError, match='start_mean_grad'):
        optimizer.update(model, *part_of(comm, whole(1)))
