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
        injection.exchange.overlaps = early
        for seed in range(PASSES):
            model.cleargrads()
            case.loss(model, *batch(comm.rank, seed=seed), comm.rank).backward()
        found.append({k: None if g is None else g.tobytes() for k, g in gradients(model).items()})
        started = injection.exchange.started_early
        assert started == 0 if not early else started > 0 or 'branch' in name or 'parts' in name
    assert found[0] == found[1]


def injected(comm: Communicator, **kwds: object) -> tuple[MLP, object]:
    model = Case(MLP, mlp).model(comm.rank)
    return model, mnx.inject_allreduce(model, comm, bucket_bytes=TINY, **kwds)


def loss_of(model: MLP, comm: Communicator, seed: int = 0) -> chainer.Variable:
    return mlp(model, *batch(comm.rank, seed=seed), comm.rank)


def expected(comm: Communicator, *seeds: int) -> dict[str, np.ndarray | None]:
    """Return the sum of one process's gradients of several batches."""
    parts = [serial_gradients(Case(MLP, mlp), comm.size, seed) for seed in seeds]
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def test_every_communicator(training_comm: Communicator) -> None:
    model, _ = injected(training_comm)
    for seed in range(2):
        model.cleargrads()
        loss_of(model, training_comm, seed).backward()
    assert_close(gradients(model), expected(training_comm, 1))


def test_op_sum_is_ngraphs(comm: Communicator) -> None:
    model, _ = injected(comm, op='sum')
    model.cleargrads()
    loss_of(model, comm).backward()
    means = expected(comm, 0)
    assert_close(gradients(model), {name: comm.size * g for name, g in means.items()})


def test_a_plain_optimizer_trains_as_one_process_does(comm: Communicator) -> None:
    model, _ = injected(comm)
    serial = Case(MLP, mlp).model()
    plain = chainer.optimizers.Adam().setup(model)
    of_one = chainer.optimizers.Adam().setup(serial)
    for seed in range(5):
        plain.update(lambda seed=seed: loss_of(model, comm, seed))
        of_one.update(lambda seed=seed: Case(MLP, mlp).serial_loss(serial, comm.size, seed))
    mnx.testing.assert_replicated(comm, model)
    for (name, p), (_, q) in zip(
        sorted(model.namedparams()), sorted(serial.namedparams()), strict=True
    ):
        np.testing.assert_allclose(p.array, q.array, rtol=1e-10, atol=1e-12, err_msg=name)


def test_gradients_accumulate(comm: Communicator) -> None:
    """Several backward passes without clearing, as for a batch that does not fit."""
    model, _ = injected(comm)
    for _ in range(2):
        model.cleargrads()
        for seed in range(3):
            loss_of(model, comm, seed).backward()
        assert_close(gradients(model), expected(comm, 0, 1, 2))
        model.cleargrads()
        loss_of(model, comm, 3).backward()
        assert_close(gradients(model), expected(comm, 3))


def test_two_graphs_then_two_backward_passes(comm: Communicator) -> None:
    model, _ = injected(comm)
    for _ in range(2):
        model.cleargrads()
        losses = [loss_of(model, comm, seed) for seed in (0, 1)]
        for loss in losses:
            loss.backward()
        assert_close(gradients(model), expected(comm, 0, 1))


def test_one_graph_two_backward_passes(comm: Communicator) -> None:
    model, _ = injected(comm)
    model.cleargrads()
    loss = loss_of(model, comm)
    loss.backward()
    loss.backward()
    assert_close(gradients(model), expected(comm, 0, 0))


@pytest.mark.parametrize('times', [1, 3])
def test_what_no_rank_uses_keeps_its_gradient(comm: Communicator, times: int) -> None:
    model, _ = injected(comm)
    for _ in range(times):
        model.cleargrads()
        model.left.W.grad = np.full((5, 5), comm.rank + 1.0)
        F.sum(model.l1(batch(comm.rank)[0]) ** 2).backward()
        np.testing.assert_array_equal(model.left.W.grad, np.full((5, 5), comm.rank + 1.0))
        assert model.right.W.grad is None
        assert_same_bits(comm, gradients(model.l1))


@pytest.mark.parametrize('retain', [True, False])
def test_retain_grad_and_loss_scale(comm: Communicator, retain: bool) -> None:
    model, _ = injected(comm)
    for seed in range(3):
        model.cleargrads()
        loss_of(model, comm, seed).backward(retain_grad=retain, loss_scale=8.0)
        assert model.l1.W._loss_scale == 8.0
        scaled = expected(comm, seed)
        assert_close(gradients(model), {name: 8 * g for name, g in scaled.items()})


def test_chainers_own_gradients_stay_the_ranks_own(comm: Communicator) -> None:
    """`chainer.grad` between passes, on one rank only: the others are not asked for anything."""
    model, _ = injected(comm)
    for seed in range(3):
        model.cleargrads()
        loss = loss_of(model, comm, seed)
        if comm.rank == 0:
            (own,) = chainer.grad([loss], [model.l3.W])
            alone = Case(MLP, mlp).model()
            alone.cleargrads()
            loss_of(alone, comm, seed).backward()
            np.testing.assert_allclose(own.array, alone.l3.W.grad, rtol=1e-12)
        loss.backward()
        assert_close(gradients(model), expected(comm, seed))


def twice_differentiable(model: MLP, x: chainer.Variable, t: np.ndarray) -> chainer.Variable:
    y = model.l3(model.right(model.left(model.hidden(x))))
    return F.softmax_cross_entropy(y, t, enable_double_backprop=True)


def penalised(model: MLP, x: np.ndarray, t: np.ndarray) -> chainer.Variable:
    x = chainer.Variable(x)
    loss = twice_differentiable(model, x, t)
    (gx,) = chainer.grad([loss], [x], enable_double_backprop=True)
    return loss + F.sum(gx * gx) / len(x)


def test_a_penalty_on_gradients(comm: Communicator) -> None:
    model, injection = injected(comm)
    for seed in range(3):
        serial = Case(MLP, mlp).model()
        serial.cleargrads()
        parts = [penalised(serial, *batch(r, seed=seed)) for r in range(comm.size)]
        (sum(parts) / comm.size).backward()
        model.cleargrads()
        penalised(model, *batch(comm.rank, seed=seed)).backward()
        assert_close(gradients(model), gradients(serial))
    assert injection.exchange.started_early > 0


def test_the_means_can_be_differentiated_again(comm: Communicator) -> None:
    def second_order(model: MLP, loss: chainer.Variable) -> dict[str, np.ndarray | None]:
        model.cleargrads()
        loss.backward(enable_double_backprop=True)
        norm = sum(F.sum(p.grad_var**2) for _, p in sorted(model.namedparams()))
        model.cleargrads()
        norm.backward()
        return gradients(model)

    serial = Case(MLP, mlp).model()
    parts = [twice_differentiable(serial, *batch(r)) for r in range(comm.size)]
    reference = second_order(serial, sum(parts) / comm.size)
    model, _ = injected(comm)
    for _ in range(2):
        found = second_order(model, twice_differentiable(model, *batch(comm.rank)))
        assert_close(found, reference)
        assert_same_bits(comm, found)


def test_truncated_backpropagation_through_time(comm: Communicator) -> None:
    case = CASES['lstm']

    def two_parts(model: chainer.Chain, ranks: list[int]) -> dict[str, np.ndarray | None]:
        model.lstm.reset_state()
        model.cleargrads()
        xs = np.concatenate([batch(r)[0] for r in ranks])
        ts = np.concatenate([batch(r)[1] for r in ranks])
        for i in range(3):
            loss = F.softmax_cross_entropy(model.out(model.lstm(xs[:, 2 * i : 2 * i + 2])), ts)
            loss.backward()
            loss.unchain_backward()
        return gradients(model)

    model = case.model(comm.rank)
    mnx.inject_allreduce(model, comm, bucket_bytes=TINY)
    for _ in range(2):
        found = two_parts(model, [comm.rank])
        assert_close(found, two_parts(case.model(), list(range(comm.size))))


def test_unchained_before_backward(comm: Communicator) -> None:
    """Graphs thrown away must not take the way to the parameters with them."""
    model, _ = injected(comm)
    for seed in range(3):
        loss_of(model, comm).unchain_backward()
        model.cleargrads()
        loss_of(model, comm, seed).backward()
        assert_close(gradients(model), expected(comm, seed))


def test_forward_passes_that_are_never_differentiated(comm: Communicator) -> None:
    model, _ = injected(comm)
    for seed in range(3):
        loss_of(model, comm, 7)
        with chainer.no_backprop_mode(), chainer.using_config('train', False):
            loss_of(model, comm, 8)
        model.cleargrads()
        loss_of(model, comm, seed).backward()
        assert_close(gradients(model), expected(comm, seed))


def test_recomputed_in_backward(comm: Communicator) -> None:
    """`F.forget` runs a backward pass inside of the other one."""

    def forgetful(model: MLP, x: np.ndarray, t: np.ndarray) -> chainer.Variable:
        h = F.tanh(model.l1(x))
        h = F.forget(lambda h: F.tanh(model.left(F.tanh(model.l2(h)))), h)
        return F.softmax_cross_entropy(model.l3(h), t)

    model, _ = injected(comm)
    for seed in range(3):
        serial = Case(MLP, mlp).model()
        serial.cleargrads()
        parts = [forgetful(serial, *batch(r, seed=seed)) for r in range(comm.size)]
        (sum(parts) / comm.size).backward()
        model.cleargrads()
        forgetful(model, *batch(comm.rank, seed=seed)).backward()
        assert_close(gradients(model), gradients(serial))


def test_a_forward_pass_that_fails_leaves_no_trace(comm: Communicator) -> None:
    model, _ = injected(comm)
    for seed in range(3):
        if comm.rank == 0:
            with pytest.raises(chainer.utils.type_check.InvalidType):
                model.l2(np.ones((2, 3)))
        model.cleargrads()
        loss_of(model, comm, seed).backward()
        assert_close(gradients(model), expected(comm, seed))
        assert all(type(p) is chainer.Parameter for p in model.params())


def test_a_backward_pass_that_fails_on_one_rank(comm: Communicator) -> None:
    """Its buckets have started with numbers of another batch: they go once more."""

    class Fails(chainer.FunctionNode):
        def forward(self, xs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
            return xs

        def backward(self, indexes: object, gys: object) -> None:
            raise ZeroDivisionError

    def broken_off() -> chainer.Variable:
        x, t = batch(comm.rank, seed=9)
        (h,) = Fails().apply((F.tanh(model.l1(x)),))
        return F.softmax_cross_entropy(model.l3(h), t)

    model, injection = injected(comm)
    for seed in range(4):
        if seed and comm.rank == 0:
            with pytest.raises(ZeroDivisionError):
                broken_off().backward()
            assert injection.exchange._flying
        model.cleargrads()
        loss_of(model, comm, seed).backward()
        assert_close(gradients(model), expected(comm, seed))


def test_two_models_with_losses_that_meet(comm: Communicator) -> None:
    models = [Case(MLP, mlp).model(10 * comm.rank + i) for i in range(2)]
    alone = [Case(MLP, mlp).model(i) for i in range(2)]
    for model in models:
        mnx.inject_allreduce(model, comm, bucket_bytes=TINY)

    def both(pair: list[MLP], rank: int, seed: int) -> chainer.Variable:
        x, t = batch(rank, seed=seed)
        return mlp(pair[0], F.tanh(pair[1].hidden(x))[:, [0, 1, 2, 3, 4, 0]], t, rank)

    for seed in range(3):
        for model in (*models, *alone):
            model.cleargrads()
        both(models, comm.rank, seed).backward()
        (sum(both(alone, r, seed) for r in range(comm.size)) / comm.size).backward()
        for model, other in zip(models, alone, strict=True):
            assert_close(gradients(model), gradients(other))


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_other_dtypes(comm: Communicator, dtype: str) -> None:
    with chainer.using_config('dtype', np.dtype(dtype)):
        model = MLP()
    mnx.inject_allreduce(model, comm, bucket_bytes=TINY)
    x, t = batch(comm.rank)
    for _ in range(2):
        model.cleargrads()
        mlp(model, x.astype(dtype), t, 0).backward()
    assert model.l1.W.grad.dtype == dtype
    assert_same_bits(comm, gradients(model))


def test_copies_are_not_injected(comm: Communicator) -> None:
    model, _ = injected(comm)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.copy('copy')]
    serial = Case(MLP, mlp).model()
    serial.cleargrads()
    loss_of(serial, comm).backward()
    for other in copies:
        if comm.rank == 0:
            other.cleargrads()
            loss_of(other, comm).backward()
            assert_close(gradients(other), gradients(serial))
    mnx.inject_allreduce(copies[0], comm)
    model.cleargrads()
    loss_of(model, comm).backward()
    assert_close(gradients(model), expected(comm, 0))


def test_remove(comm: Communicator) -> None:
    model, injection = injected(comm)
    injection.remove()
    if comm.rank == 0:
        serial = Case(MLP, mlp).model()
        for each in (model, serial):
            each.cleargrads()
            loss_of(each, comm).backward()
        assert_close(gradients(model), gradients(serial))
    mnx.inject_allreduce(model, comm)
    model.cleargrads()
    loss_of(model, comm).backward()
    assert_close(gradients(model), expected(comm, 0))


class Order(chainer.FunctionHook):
    """Notes which functions backward came to."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def backward_postprocess(self, function: chainer.FunctionNode, *_: object) -> None:
        self.labels.append(function.label)


def test_gradients_are_ready_right_after_their_last_use(comm: Communicator) -> None:
    model, _ = injected(comm)
    for seed in range(2):
        with Order() as order:
            loss_of(model, comm, seed).backward()
        labels = [x for x in order.labels if x in ('LinearFunction', 'Ready')]
        assert labels == ['LinearFunction', 'Ready', 'Ready'] * 5
        assert order.labels[-1] == 'AllReduceGradients'


@pytest.mark.parametrize('where', ['every rank', 'the last rank'])
def test_a_use_outside_its_link_that_begins_later(comm: Communicator, where: str) -> None:
    """What was sent early is wrong once; then it waits for the end."""

    def loss(model: MLP, rank: int, seed: int) -> chainer.Variable:
        found = mlp(model, *batch(rank, seed=seed), rank)
        if seed >= 2 and (where == 'every rank' or rank == comm.size - 1):
            found += F.sum(model.l3.W**3) + F.sum(F.tanh(model.left.b))
        return found

    model, injection = injected(comm)
    exchange = injection.exchange
    late = [i for i, p in enumerate(exchange.params) if p is model.l3.W or p is model.left.b]
    for seed in range(5):
        serial = Case(MLP, mlp).model()
        serial.cleargrads()
        (sum(loss(serial, r, seed) for r in range(comm.size)) / comm.size).backward()
        model.cleargrads()
        loss(model, comm.rank, seed).backward()
        assert_close(gradients(model), gradients(serial))
        assert_same_bits(comm, gradients(model))
        waits = [i for i in range(len(exchange.params)) if not exchange.wants(i)]
        assert waits == (late if seed >= 2 else [])
        assert exchange.started_early > 0 or seed == 0


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('uninitialised', 'has no values yet'),
        ('twice', 'is injected already'),
        ('product', "op is 'mean' or 'sum'"),
    ],
)
def test_wrong_arguments_on_one_rank(comm: Communicator, what: str, message: str) -> None:
    model, op = Case(MLP, mlp).model(), 'mean'
    if what == 'twice':
        mnx.inject_allreduce(model, comm)
    if comm.rank == comm.size - 1 and what == 'uninitialised':
        model.l1.add_param('late')
    if comm.rank == comm.size - 1 and what == 'product':
        op = 'product'
    with pytest.raises(ArgumentError, match=message):
        mnx.inject_allreduce(model, comm, op)


@pytest.mark.needs_ranks(2)
def test_other_parameters_on_one_rank(comm: Communicator) -> None:
    model = Case(MLP, mlp).model()
    if comm.rank == 0:
        model.l1.add_param('extra', (2,))
        model.l1.extra.array[...] = 0
    with pytest.raises(MismatchError, match=r'only on rank\(s\) 0: /l1/extra'):
        mnx.inject_allreduce(model, comm)


@pytest.mark.parametrize('when', [0, 2])
def test_parameters_that_were_added_or_replaced_later(comm: Communicator, when: int) -> None:
    model, injection = injected(comm)
    for seed in range(when):
        loss_of(model, comm, seed).backward()
    if comm.rank == 0:
        with model.l1.init_scope():
            model.l1.W = chainer.Parameter(model.l1.W.array.copy())
    with pytest.raises(ArgumentError, match='other parameters than when it was injected'):
        loss_of(model, comm).backward()
    with pytest.raises(ArgumentError, match='out of step'):
        loss_of(model, comm).backward()
    injection.remove()
    mnx.inject_allreduce(model, comm)
    model.cleargrads()
    loss_of(model, comm).backward()
    assert_same_bits(comm, gradients(model))


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('times', [0, 2])
def test_a_rank_that_does_not_take_part(comm: Communicator, times: int) -> None:
    comm = comm.split(0, comm.rank)
    model, injection = injected(comm)
    for seed in range(times):
        loss_of(model, comm, seed).backward()
    loss = loss_of(model, comm)
    call = loss.backward if comm.rank else lambda: comm.allreduce(np.ones(3))
    with pytest.raises(MismatchError, match='backward of an injected model'):
        call()
    injection.remove()


def test_after_finalize(comm: Communicator) -> None:
    comm = comm.split(0, comm.rank)
    model, _ = injected(comm)
    for seed in range(2):
        loss_of(model, comm, seed).backward()
    comm.finalize()
    with pytest.raises(mnx.errors.ClosedError):
        loss_of(model, comm).backward()


# --- beside the plain exchange --------------------------------------------------------------------


@pytest.mark.parametrize('name', CASES)
def test_as_the_plain_exchange(name: str) -> None:
    """One bucket for each gradient is `naive`'s layout; with two ranks there is one way to add.

    Chainer adds up the three uses of a link in another order where it was used deep down first.
    """
    case, one_order = CASES[name], name != 'shallow after deep'
    with mnx.create_communicator('naive') as comm:
        plain, model = case.distributed(comm), case.distributed(comm)
        mnx.inject_allreduce(model, comm, bucket_bytes=1)
        for seed in range(PASSES):
            for each in (plain, model):
                each.cleargrads()
                case.loss(each, *batch(comm.rank, seed=seed), comm.rank).backward()
            comm.multi_node_mean_grad(plain, zero_fill=True)
            for parameter, gradient in gradients(model).items():
                expected = gradients(plain)[parameter]
                if comm.size <= 2 and one_order and gradient is not None:
                    np.testing.assert_array_equal(gradient, expected, err_msg=parameter)
                elif gradient is None:
                    assert not expected.any()
                else:
                    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-13)
