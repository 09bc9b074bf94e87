"""The wrapper: replication, late parameters, hooks, loss scaling, errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import optimizer_hooks
from chainer.serializers import load_npz, save_npz

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError, RemoteError
from mnx.optimizers import MultiNodeOptimizer
from mnx.testing import assert_replicated


def sample(rank: int, batch: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(1000 * seed + rank)
    return rng.standard_normal((batch, 6)).astype('f4'), rng.randint(0, 3, batch).astype('i4')


def whole(comm: Communicator, batch: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    parts = [sample(r, batch, seed) for r in range(comm.size)]
    return np.concatenate([x for x, _ in parts]), np.concatenate([t for _, t in parts])


class Lazy(chainer.Chain):
    """A lazily initialised layer, dropout-free, with a head that is used on request."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(None, 5)
            self.bn = L.BatchNormalization(5)
            self.l2 = L.Linear(None, 3)
            self.head = L.Linear(None, 3)

    def forward(self, x: np.ndarray, t: np.ndarray, head: bool = False) -> chainer.Variable:
        h = F.tanh(self.bn(self.l1(x)))
        y = self.l2(h) + (self.head(h) if head else 0)
        return F.softmax_cross_entropy(y, t)


def wrap(comm: Communicator, model: chainer.Link, **kwds: object) -> MultiNodeOptimizer:
    actual = chainer.optimizers.MomentumSGD(0.1)
    return mnx.create_multi_node_optimizer(actual, comm, **kwds).setup(model)


def equal_on_all_ranks(comm: Communicator, model: chainer.Link) -> None:
    for name, param in sorted(model.namedparams()):
        values = comm.allgather_obj(None if param.array is None else param.array.tobytes())
        assert all(v == values[0] for v in values), name


def test_setup_replicates_everything(comm: Communicator) -> None:
    np.random.seed(comm.rank)
    model = chainer.Sequential(L.Linear(6, 5), L.BatchNormalization(5), L.Linear(None, 3))
    model[1].avg_mean[:] = comm.rank + 1
    model[1].N = comm.rank + 7
    np.random.seed(0)
    expected = L.Linear(6, 5).W.array
    optimizer = wrap(comm, model)
    np.testing.assert_array_equal(model[0].W.array, expected)
    np.testing.assert_array_equal(model[1].avg_mean, np.ones(5))
    assert model[1].N == 7
    assert model[2].W.array is None
    assert optimizer.setup(model) is optimizer


def test_an_optimizer_that_was_set_up_before(comm: Communicator) -> None:
    model = L.Linear(3, 2)
    model.W.array[:] = comm.rank + 1
    mnx.create_multi_node_optimizer(chainer.optimizers.SGD().setup(model), comm)
    np.testing.assert_array_equal(model.W.array, np.ones((2, 3)))


def test_late_parameters_take_rank_0s_values_and_no_batch_is_lost(comm: Communicator) -> None:
    np.random.seed(0)
    serial = Lazy()
    del serial.bn  # the batch statistics of a part are not those of the whole
    serial.bn = F.identity
    plain = chainer.optimizers.MomentumSGD(0.1).setup(serial)
    np.random.seed(comm.rank)
    model = Lazy()
    del model.bn
    model.bn = F.identity
    optimizer = wrap(comm, model)
    np.random.seed(comm.rank)  # the first forward pass draws the initial values
    for step in range(3):
        if step == 0:
            np.random.seed(0 if comm.size == 1 else comm.rank)
        optimizer.update(model, *sample(comm.rank, seed=step))
    np.random.seed(0)
    for step in range(3):
        plain.update(serial, *whole(comm, seed=step))
    assert optimizer.t == 3
    equal_on_all_ranks(comm, model)
    for (name, p), (_, expected) in zip(
        sorted(model.namedparams()), sorted(serial.namedparams()), strict=True
    ):
        if expected.array is not None:
            np.testing.assert_allclose(p.array, expected.array, atol=1e-6, err_msg=name)


@pytest.mark.needs_ranks(2)
def test_a_late_parameter_on_one_rank_only(comm: Communicator) -> None:
    np.random.seed(comm.rank)
    model = Lazy()
    optimizer = wrap(comm, model)
    for step, odd in enumerate([None, comm.size - 1, 0, None]):
        optimizer.update(model, *sample(comm.rank, seed=step), head=comm.rank == odd)
        equal_on_all_ranks(comm, model)
        assert (model.head.W.array is None) == (step == 0)
    assert optimizer.t == 4


def test_the_first_forward_pass_leaves_no_trace(comm: Communicator) -> None:
    """It is run twice where parameters appear; running statistics must count it once."""
    model = Lazy()
    optimizer = wrap(comm, model)
    seen = []

    def loss(x: np.ndarray, t: np.ndarray) -> chainer.Variable:
        y = model(x, t)
        seen.append((model.bn.avg_mean.copy(), 0.1 * model.l1(x).array.mean(axis=0)))
        return y

    optimizer.update(loss, *sample(comm.rank))
    assert len(seen) == (1 if comm.size == 1 else 2)
    np.testing.assert_allclose(*seen[-1], rtol=1e-5)


def test_gradients_given_for_different_late_parameters(comm: Communicator) -> None:
    for seed, fails in ((7, False), (comm.rank, comm.size > 1)):
        np.random.seed(3)
        model = Lazy()
        optimizer = wrap(comm, model)
        np.random.seed(seed)
        loss = model(*sample(comm.rank))
        model.cleargrads()
        loss.backward()
        if fails:
            with pytest.raises(ArgumentError, match='differed between the ranks'):
                optimizer.update()
        else:
            optimizer.update()
            equal_on_all_ranks(comm, model)


def test_a_forward_pass_before_the_first_update(comm: Communicator) -> None:
    np.random.seed(comm.rank)
    model = Lazy()
    optimizer = wrap(comm, model)
    model(*sample(comm.rank))
    optimizer.update(model, *sample(comm.rank))
    equal_on_all_ranks(comm, model)


class LazyNormalization(chainer.Chain):
    """A batch normalisation that gets its size late, with a random gamma."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.bn = L.BatchNormalization(axis=0, initial_gamma=chainer.initializers.Normal(1))
            self.out = L.Linear(6, 3)

    def forward(self, x: np.ndarray, t: np.ndarray, normalize: bool = True) -> chainer.Variable:
        return F.softmax_cross_entropy(self.out(self.bn(x) if normalize else x), t)


@pytest.mark.parametrize('late_on', ['all ranks', 'rank 0'])
def test_lazily_sized_batch_normalization(comm: Communicator, late_on: str) -> None:
    np.random.seed(comm.rank)
    model = LazyNormalization()
    optimizer = wrap(comm, model)
    for step in range(4):
        used = step > 1 or late_on == 'all ranks' or comm.rank == 0
        optimizer.update(model, *sample(comm.rank, seed=step), normalize=used)
        equal_on_all_ranks(comm, model)
    assert model.bn.avg_mean.shape == (6,)
    assert np.abs(model.bn.gamma.array - 1).max() > 0.1  # the random ones, trained


def test_an_empty_batch_through_the_usual_loss(comm: Communicator) -> None:
    """All samples are rank 0's; Chainer's own softmax_cross_entropy fails for the others."""
    models = [L.Classifier(L.Linear(6, 3, initialW=np.ones((3, 6), 'f4'))) for _ in range(2)]
    x, t = sample(0)
    mine = slice(0, 4) if comm.rank == 0 else slice(0, 0)
    optimizer = wrap(comm, models[0])
    optimizer.update(models[0], x[mine], t[mine])
    chainer.optimizers.MomentumSGD(0.1).setup(models[1]).update(models[1], x, t)
    equal_on_all_ranks(comm, models[0])
    np.testing.assert_allclose(models[0].predictor.W.array, models[1].predictor.W.array, rtol=1e-6)


@pytest.mark.needs_ranks(2)
def test_a_weight_on_some_ranks_only(comm: Communicator) -> None:
    """Words on one rank are not to be added to samples on another."""
    model = L.Classifier(L.Linear(6, 3))
    given = {'weight': 9.0} if comm.rank == 1 else {}
    with pytest.raises(MismatchError, match=r'> rank 1 .*weight was given'):
        wrap(comm, model).update(model, *sample(comm.rank), **given)
    words = (lambda x, t: 9.0) if comm.rank == 1 else None
    with pytest.raises(MismatchError, match=r'> rank 1 .*weight was computed'):
        wrap(comm, model, weight=words).update(model, *sample(comm.rank))


def test_an_update_without_a_model(comm: Communicator) -> None:
    for late in (False, True):
        actual = chainer.optimizers.SGD()
        optimizer = mnx.create_multi_node_optimizer(actual, comm, double_buffering=late)
        with pytest.raises(ArgumentError, match=r'setup\(model\)'):
            optimizer.update(lambda: None)


def test_a_weight_that_is_an_array_belongs_to_the_loss_function(comm: Communicator) -> None:
    model = L.Linear(6, 3)
    optimizer = wrap(comm, model)
    seen = []

    def loss(x: np.ndarray, t: np.ndarray, weight: np.ndarray) -> chainer.Variable:
        seen.append(weight)
        return F.softmax_cross_entropy(model(x), t)

    x, t = sample(comm.rank)
    optimizer.update(loss, x=x, t=t, weight=np.ones(4))
    assert len(seen) == 1


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('what', ['hook', 'loss scale'])
def test_what_must_be_equal_besides_gradients(comm: Communicator, what: str) -> None:
    model = L.Linear(6, 3)
    optimizer = wrap(comm, model)
    if comm.rank == 1 and what == 'hook':
        optimizer.add_hook(optimizer_hooks.WeightDecay(0.1))
    if comm.rank == 1 and what == 'loss scale':
        optimizer.loss_scaling(scale=4)
    with pytest.raises(MismatchError, match='WeightDecay' if what == 'hook' else 'loss_scale=4'):
        optimizer.update(lambda x, t: F.softmax_cross_entropy(model(x), t), *sample(comm.rank))


def test_values_loaded_on_one_rank_after_setup(comm: Communicator) -> None:
    model = L.Classifier(L.Linear(6, 3))
    optimizer = wrap(comm, model)
    if comm.rank == 0:
        model.predictor.W.array[...] = 7
    optimizer.update(model, *sample(comm.rank))
    equal_on_all_ranks(comm, model)
    assert np.abs(model.predictor.W.array - 7).max() < 1


def test_state_that_only_one_rank_has_does_not_stay(comm: Communicator) -> None:
    model = L.Classifier(L.Linear(6, 3))
    actual = chainer.optimizers.Adam().setup(model)
    if comm.rank == comm.size - 1 and comm.rank:
        actual.update(model, *sample(0))
    optimizer = mnx.create_multi_node_optimizer(actual, comm)
    optimizer.update(model, *sample(comm.rank))
    equal_on_all_ranks(comm, model)
    assert optimizer.t == 1


@pytest.mark.parametrize('zero_fill', [True, False])
def test_a_parameter_unused_on_one_rank(comm: Communicator, zero_fill: bool) -> None:
    model = chainer.Sequential(L.Linear(6, 3), L.Linear(6, 3))
    optimizer = wrap(comm, model, zero_fill=zero_fill)
    odd = comm.size - 1

    def loss(x: np.ndarray, t: np.ndarray) -> chainer.Variable:
        return F.softmax_cross_entropy(model[1 if comm.rank == odd else 0](x), t)

    if zero_fill or comm.size == 1:
        optimizer.update(loss, *sample(comm.rank))
        equal_on_all_ranks(comm, model)
    else:
        with pytest.raises(MismatchError, match=rf'only on rank\(s\) {odd}: /1/'):
            optimizer.update(loss, *sample(comm.rank))


def test_hooks_act_on_the_mean_gradient(comm: Communicator) -> None:
    models = [L.Linear(6, 3, initialW=np.ones((3, 6), 'f4')) for _ in range(2)]
    optimizers = [wrap(comm, models[0]), chainer.optimizers.MomentumSGD(0.1).setup(models[1])]
    for optimizer in optimizers:
        optimizer.add_hook(optimizer_hooks.GradientClipping(0.01))
        optimizer.add_hook(optimizer_hooks.WeightDecay(0.1))
    data = [sample(comm.rank), whole(comm)]
    for optimizer, model, (x, t) in zip(optimizers, models, data, strict=True):
        optimizer.update(lambda x, t, m=model: F.softmax_cross_entropy(m(x), t), x, t)
    np.testing.assert_allclose(models[0].W.array, models[1].W.array, rtol=1e-6)


@pytest.mark.filterwarnings('ignore')  # the overflow itself, and Chainer telling of it
def test_overflow_under_loss_scaling_is_one_decision(comm: Communicator) -> None:
    model = L.Linear(6, 3, initialW=np.ones((3, 6), 'f4'))
    optimizer = wrap(comm, model)
    optimizer.loss_scaling(interval=10)
    odd = comm.size - 1
    before = model.W.array.copy()
    for step in range(3):
        factor = np.float32('inf') if step == 0 and comm.rank == odd else np.float32(1)
        optimizer.update(
            lambda x, t, f=factor: F.softmax_cross_entropy(model(x), t) * f, *sample(comm.rank)
        )
        scales = comm.allgather_obj(optimizer._loss_scale)
        assert len(set(scales)) == 1
        assert np.array_equal(model.W.array, before) == (step == 0)
        equal_on_all_ranks(comm, model)


@pytest.mark.parametrize('given', [False, True], ids=['lossfun', 'given'])
@pytest.mark.parametrize('buffered', [False, True], ids=['plain', 'double_buffering'])
def test_loss_scaling_of_what_one_rank_uses(
    comm: Communicator, given: bool, buffered: bool
) -> None:
    """Rank `step % size` uses the head, by a scale that is another one at every step."""
    models = [headed(), headed()]
    optimizers = [chainer.optimizers.SGD(0.1).setup(model) for model in models]
    optimizers[0] = mnx.create_multi_node_optimizer(optimizers[0], comm, buffered)
    for step in range(4):
        for optimizer in optimizers:
            optimizer.loss_scaling(scale=2.0 ** (step + 1))
        losses = [loss_of_head(models[1], r, r == step % comm.size) for r in range(comm.size)]
        update(optimizers[1], lambda parts=losses: sum(parts) / comm.size, given=True)
        used = comm.rank == step % comm.size
        update(optimizers[0], lambda u=used: loss_of_head(models[0], comm.rank, u), given=given)
        if buffered:
            optimizers[0].flush()
        for one, other in zip(models[0].params(), models[1].params(), strict=True):
            np.testing.assert_allclose(one.array, other.array, rtol=1e-12, atol=1e-15)
        equal_on_all_ranks(comm, models[0])


def headed() -> chainer.Chain:
    body, head = (L.Linear(6, 3, initialW=np.ones((3, 6))) for _ in range(2))
    for link in (body, head):
        link.b.array = np.zeros(3)
    return chainer.Chain(body=body, head=head)


def loss_of_head(model: chainer.Chain, rank: int, uses_head: bool) -> chainer.Variable:
    x, t = sample(rank)
    x = x.astype('f8')
    return F.softmax_cross_entropy(model.body(x) + (model.head(x) if uses_head else 0), t)


def update(optimizer: chainer.Optimizer, loss: Callable[[], chainer.Variable], given: bool) -> None:
    if not given:
        optimizer.update(loss)
        return
    optimizer.target.cleargrads()
    loss().backward(loss_scale=optimizer._loss_scale)
    optimizer.update()


def test_hyperparameters_that_differ_are_an_error(comm: Communicator) -> None:
    model = L.Linear(6, 3)
    optimizer = wrap(comm, model)
    optimizer.lr = 0.5  # reaches the actual optimizer
    assert optimizer.actual_optimizer.lr == 0.5
    optimizer.update(lambda x, t: F.softmax_cross_entropy(model(x), t), *sample(comm.rank))
    if comm.size > 1:
        optimizer.lr = 0.1 if comm.rank == 1 else 0.2
        with pytest.raises(MismatchError, match=r'lr=0\.1'):
            optimizer.update(lambda x, t: F.softmax_cross_entropy(model(x), t), *sample(comm.rank))


def linear_of_dtype(dtype: str) -> chainer.Link:
    with chainer.using_config('dtype', np.dtype(dtype)):
        return L.Linear(3, 2)


DIFFERENT: dict[str, Callable[[bool], chainer.Link]] = {
    'another shape': lambda odd: L.Linear(3 + odd, 2),
    'another parameter': lambda odd: L.Linear(3, 2, nobias=odd),
    'another dtype': lambda odd: linear_of_dtype('float64' if odd else 'float32'),
}


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('case', DIFFERENT)
def test_different_models_are_an_error_on_every_rank(comm: Communicator, case: str) -> None:
    with pytest.raises(MismatchError, match='same model'):
        wrap(comm, DIFFERENT[case](comm.rank == 1))


def test_loading_a_snapshot_makes_all_ranks_equal(comm: Communicator, tmp_path: Path) -> None:
    def model_and_optimizer() -> tuple[chainer.Link, MultiNodeOptimizer]:
        model = L.Linear(6, 3)
        return model, wrap(comm, model)

    def step(model: chainer.Link, optimizer: MultiNodeOptimizer, seed: int) -> None:
        optimizer.update(
            lambda x, t: F.softmax_cross_entropy(model(x), t), *sample(comm.rank, seed=seed)
        )

    model, optimizer = model_and_optimizer()
    step(model, optimizer, 0)
    save_npz(tmp_path / 'model.npz', model)
    save_npz(tmp_path / 'optimizer.npz', optimizer)
    step(model, optimizer, 1)
    resumed, other = model_and_optimizer()
    load_npz(tmp_path / 'model.npz', resumed)
    load_npz(tmp_path / 'optimizer.npz', other)
    assert other.t == 1
    step(resumed, other, 1)
    assert other.t == 2
    assert resumed.W.array.tobytes() == model.W.array.tobytes()


@pytest.mark.needs_ranks(2)
def test_loading_different_snapshots_takes_rank_0s(comm: Communicator, tmp_path: Path) -> None:
    model = L.Classifier(chainer.Sequential(L.Linear(6, 4), L.BatchNormalization(4)))
    optimizer = wrap(comm, model)
    optimizer.update(model, *sample(comm.rank))
    for param in model.params():
        param.array += comm.rank
    save_npz(tmp_path / 'optimizer.npz', optimizer)
    load_npz(tmp_path / 'optimizer.npz', optimizer)
    optimizer.update(model, *sample(comm.rank))
    equal_on_all_ranks(comm, model)


@pytest.mark.needs_ranks(2)
def test_loading_keeps_each_ranks_running_statistics(comm: Communicator, tmp_path: Path) -> None:
    model = L.Classifier(chainer.Sequential(L.Linear(6, 4), L.BatchNormalization(4)))
    optimizer = wrap(comm, model)
    optimizer.update(model, *sample(comm.rank))
    save_npz(tmp_path / 'optimizer.npz', optimizer)
    load_npz(tmp_path / 'optimizer.npz', optimizer)
    before = model.predictor[1].avg_mean.copy()
    optimizer.update(model, *sample(comm.rank))
    means = comm.allgather(before)
    assert not np.array_equal(means[0], means[1])
    kept = 0.9 * before + 0.1 * model.predictor[0](sample(comm.rank)[0]).array.mean(axis=0)
    np.testing.assert_allclose(model.predictor[1].avg_mean, kept, atol=0.1)


def test_with_the_standard_updater_and_trainer(comm: Communicator, tmp_path: Path) -> None:
    model = L.Classifier(L.Linear(6, 3))
    optimizer = wrap(comm, model)
    x, t = sample(comm.rank, 8)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(x, t), 4)
    updater = chainer.training.StandardUpdater(iterator, optimizer)
    trainer = chainer.training.Trainer(updater, (2, 'epoch'), out=str(tmp_path))
    trainer.extend(chainer.training.extensions.ExponentialShift('lr', 0.5), trigger=(1, 'epoch'))
    trainer.run()
    assert (optimizer.t, optimizer.epoch) == (4, 2)
    assert optimizer.lr == pytest.approx(0.1 * 0.5**2)
    equal_on_all_ranks(comm, model)


def test_debug_mode_finds_what_diverged(comm: Communicator) -> None:
    model = L.Linear(3, 2)
    for param in model.params():
        param.grad = np.zeros_like(param.array)
    if comm.rank == comm.size - 1:
        model.W.grad[0, 0] = np.nan
    with (
        chainer.using_config('debug', True),
        pytest.raises(ValueError, match=r' diverged .*/W'),
    ):
        comm.multi_node_mean_grad(model)


def test_wrapper_can_be_copied_and_lacks_what_the_optimizer_lacks(comm: Communicator) -> None:
    optimizer = wrap(comm, L.Linear(3, 2))
    assert copy.copy(optimizer).actual_optimizer is optimizer.actual_optimizer
    with pytest.raises(AttributeError, match='nonsense'):
        _ = optimizer.nonsense


@pytest.mark.needs_ranks(2)
def test_arguments_of_values_that_are_gone(comm: Communicator) -> None:
    """A variable that was computed before the ranks were made equal has no right gradient."""
    np.random.seed(comm.rank)
    model = L.Linear(None, 2)
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm).setup(model)
    y = model(np.ones((2, 3), 'f4'))
    with pytest.raises(ArgumentError, match='Compute it inside'):
        optimizer.update(lambda y: F.mean(y**2), y)
    y = model(np.ones((2, 3), 'f4'))
    optimizer.update(lambda y: F.mean(y**2), y)
    assert_replicated(comm, model)


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('hook', [optimizer_hooks.WeightDecay, optimizer_hooks.GradientClipping])
def test_hooks_with_other_numbers(comm: Communicator, hook: Callable[[float], object]) -> None:
    model = L.Linear(3, 2)
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.SGD(0.1), comm).setup(model)
    optimizer.add_hook(hook(0.5 if comm.rank == 0 else 0.25))
    with pytest.raises(MismatchError, match=r'0\.5'):
        optimizer.update(lambda: F.mean(model(np.ones((2, 3), 'f4')) ** 2))


class Watch:
    """A hook of a user's own, which changes nothing and has numbers of its own on each rank."""

    name = 'Watch'

    def __init__(self, rank: int) -> None:
        self.path, self.seconds = f'log.{rank}', 0.1 * rank

    def __call__(self, optimizer: chainer.Optimizer) -> None:
        self.seconds += 1.5


def test_numbers_of_a_users_own_hook_may_differ(comm: Communicator) -> None:
    model, hook = LazyNormalization(), Watch(comm.rank)
    optimizer = wrap(comm, model)
    optimizer.add_hook(hook)
    for step in range(2):
        optimizer.update(model, *sample(comm.rank, seed=step))
    assert hook.seconds == 0.1 * comm.rank + 3
    equal_on_all_ranks(comm, model)


def test_a_late_parameter_can_be_initialised_anew(comm: Communicator) -> None:
    """As in plain Chainer, once it has been trained."""
    model = LazyNormalization()
    optimizer = wrap(comm, model)
    optimizer.update(model, *sample(comm.rank))
    np.random.seed(5)
    model.bn.gamma.initialize((6,))
    np.random.seed(5)
    np.testing.assert_allclose(model.bn.gamma.array, np.random.normal(0, 1, 6), rtol=1e-6)
    optimizer.update(model, *sample(comm.rank, seed=1))
    equal_on_all_ranks(comm, model)


@pytest.mark.needs_ranks(2)
def test_a_batch_that_one_rank_cannot_take_is_left_out_by_all(comm: Communicator) -> None:
    model, serial = L.Linear(3, 2), L.Linear(3, 2)
    optimizer = wrap(comm, model)
    serial.copyparams(model)
    plain = chainer.optimizers.MomentumSGD(0.1).setup(serial)
    left_out = []
    for step in range(5):
        xs = np.random.RandomState(step).randn(comm.size, 4, 3).astype('f4')

        def loss(x: np.ndarray, step: int = step) -> chainer.Variable:
            if step == 2 and comm.rank == comm.size - 1:
                raise MemoryError('a long sentence')
            return F.mean(model(x) ** 2)

        try:
            with comm.together('an update'):
                optimizer.update(loss, xs[comm.rank])
        except (MemoryError, RemoteError) as error:
            left_out.append((step, 'a long sentence' in str(error)))
        if step != 2:
            plain.update(lambda x: F.mean(serial(x) ** 2), np.concatenate(xs))
    assert left_out == [(2, True)]
    equal_on_all_ranks(comm, model)
    for one, other in zip(model.params(), serial.params(), strict=True):
        np.testing.assert_allclose(one.array, other.array, rtol=1e-5, atol=1e-6)
