from __future__ import annotations

import copy
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, DtypeError, MismatchError
from mnx.links import MultiNodeChainList
from tests.links.patterns import PATTERNS, WIDTH, Join, Links, Pair, Pattern, make

two_ranks = pytest.mark.needs_ranks(2)
every_pattern = pytest.mark.parametrize('pattern', PATTERNS, ids=lambda p: p.name)
N_INPUTS = 2
STEPS = 20

Variable = Any


def inputs_of_all(n: int, step: int = 0) -> list[tuple[Variable, ...]]:
    rng = np.random.default_rng(step)
    return [
        tuple(chainer.Variable(rng.normal(size=(4, WIDTH))) for _ in range(N_INPUTS))
        for _ in range(n)
    ]


def model_of(comm: Communicator, pattern: Pattern, links: Links) -> MultiNodeChainList:
    model = MultiNodeChainList(comm)
    for name, rank_in, rank_out in pattern.rows(comm.size)[comm.rank]:
        model.add_link(links[name], rank_in, rank_out)
    return model


def own_names(comm: Communicator, pattern: Pattern) -> set[str]:
    return {name for name, _, _ in pattern.rows(comm.size)[comm.rank]}


def loss_of(rank: int, ys: tuple[Variable, ...]) -> Variable:
    return sum(F.sum((rank + k + 1) * y**2) for k, y in enumerate(ys))


def backward(comm: Communicator, output: Any, n_outputs: int) -> Variable:
    """Call backward as a user does; return the loss, or the delegate variable."""
    ys = output if isinstance(output, tuple) else (output,)
    loss = loss_of(comm.rank, ys) if n_outputs else output
    loss.backward()
    return loss


def assert_close(actual: Any, expected: Any) -> None:
    if expected is None:  # the function that would have made one has not run
        assert actual is None or not actual.any()
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@two_ranks
@every_pattern
def test_outputs_and_gradients_are_those_of_one_process(comm: Communicator, pattern) -> None:
    own, alone = pattern.links(comm.size), pattern.links(comm.size)
    expected_x = inputs_of_all(comm.size)
    expected = pattern.serial(alone, expected_x)
    sum(loss_of(rank, ys) for rank, ys in expected.items()).backward()

    xs = inputs_of_all(comm.size)[comm.rank]
    output = model_of(comm, pattern, own)(*xs)
    n_outputs = len(expected.get(comm.rank, ()))
    assert isinstance(output, tuple) == (n_outputs > 1)
    ys = output if n_outputs > 1 else (output,) * n_outputs
    for y, y0 in zip(ys, expected.get(comm.rank, ()), strict=True):
        assert_close(y.array, y0.array)
    backward(comm, output, n_outputs)
    for x, x0 in zip(xs, expected_x[comm.rank], strict=True):
        assert_close(x.grad, x0.grad)
    for name in own_names(comm, pattern):
        for (path, p), (_, p0) in zip(
            sorted(own[name].namedparams()), sorted(alone[name].namedparams()), strict=True
        ):
            assert p.grad is not None or p0.grad is None, path
            assert_close(p.grad, p0.grad)


@two_ranks
@every_pattern
def test_training_stays_equal(comm: Communicator, pattern) -> None:
    own, alone = pattern.links(comm.size), pattern.links(comm.size)
    model = model_of(comm, pattern, own)
    optimizer = chainer.optimizers.Adam(0.01).setup(model)
    serial = [chainer.optimizers.Adam(0.01).setup(link) for link in alone.values()]
    for step in range(STEPS):
        x = inputs_of_all(comm.size, step)
        for each in (*serial, optimizer):
            each.target.cleargrads()
        expected = pattern.serial(alone, x)
        sum(loss_of(rank, ys) for rank, ys in expected.items()).backward()
        backward(comm, model(*x[comm.rank]), len(expected.get(comm.rank, ())))
        for each in (*serial, optimizer):
            each.update()
    for name in own_names(comm, pattern):
        before = dict(make(name, sorted(own).index(name)).namedparams())
        for path, p in own[name].namedparams():
            assert_close(p.array, dict(alone[name].namedparams())[path].array)
            assert (
                pattern.name == 'an input that is not used' or (p.array != before[path].array).any()
            )


def penalty_of(variables: list[Variable]) -> Variable:
    """Return a function of their gradients that is not linear."""
    gs = [v.grad_var for v in variables if v.grad_var is not None]
    return sum((F.sum(F.sin(g)) for g in gs), start=chainer.Variable(np.zeros(())))


def differentiate_twice(output: Variable, variables: list[Variable]) -> None:
    for v in variables:
        v.cleargrad()
    output.backward(enable_double_backprop=True)
    penalty = penalty_of(variables)
    for v in variables:
        v.cleargrad()
    penalty.backward()


@two_ranks
@every_pattern
def test_second_derivatives_are_those_of_one_process(comm: Communicator, pattern) -> None:
    """Also on ranks whose penalty depends on nothing that came back from another rank."""
    own, alone = pattern.links(comm.size), pattern.links(comm.size)
    expected_x = inputs_of_all(comm.size)
    losses = [loss_of(r, ys) for r, ys in pattern.serial(alone, expected_x).items()]
    everything = [x for row in expected_x for x in row]
    differentiate_twice(sum(losses), [*everything, *chainer.ChainList(*alone.values()).params()])

    xs = inputs_of_all(comm.size)[comm.rank]
    model = model_of(comm, pattern, own)
    output = model(*xs)
    has_loss = any(row[2] is None for row in pattern.rows(comm.size)[comm.rank])
    ys = output if isinstance(output, tuple) else (output,)
    loss = loss_of(comm.rank, ys) if has_loss else output
    differentiate_twice(loss, [*xs, *model.params()])
    for x, x0 in zip(xs, expected_x[comm.rank], strict=True):
        assert_close(x.grad, x0.grad)
    for name in own_names(comm, pattern):
        for path, p in own[name].namedparams():
            assert_close(p.grad, dict(alone[name].namedparams())[path].grad)


@two_ranks
def test_one_of_several_outputs_is_enough_for_backward(comm: Communicator) -> None:
    """All ranks get through; the components of the unused output get zeros."""
    pattern = next(p for p in PATTERNS if p.name == 'several inputs and outputs')
    links = pattern.links(comm.size)
    y = model_of(comm, pattern, links)(*inputs_of_all(comm.size)[comm.rank])
    F.sum(y[0] if comm.rank == 0 else y).backward()
    if comm.rank == 0:
        assert (links['b'].linear.W.grad != 0).any()
        assert (links['a'].linear.W.grad == 0).all()
    if comm.rank == 1:
        assert (links['c'].linear.W.grad == 0).all()


@two_ranks
def test_an_optimizer_updates_it(comm: Communicator) -> None:
    """With the model as loss function, on ranks with and without the loss."""
    links = {'f': make('f', 0), 'g': make('g', 1)}
    rows = [[('f', None, 1)], [('g', 0, None)]]
    pattern = Pattern('pair', lambda n: rows + [[] for _ in range(n - 2)], lambda f, x: {})
    model = model_of(comm, pattern, links)
    optimizer = chainer.optimizers.SGD().setup(model)
    before = [p.array.copy() for p in model.params()]
    (x,) = inputs_of_all(1)[0][:1]
    optimizer.update((lambda: F.sum(model(x))) if comm.rank == 1 else (lambda: model(x)))
    assert all((p.array != b).any() for p, b in zip(model.params(), before, strict=True))


def three(comm: Communicator) -> tuple[MultiNodeChainList, int, bool, bool]:
    model = MultiNodeChainList(comm)
    return model, comm.rank, comm.rank == 0, comm.rank == 1


def same_error(comm: Communicator, model: MultiNodeChainList) -> str:
    """Call the model: the same error on every rank, and the communicator is as good as before."""
    with pytest.raises(MismatchError) as caught:
        model(np.ones((1, WIDTH)))
    texts = comm.allgather_obj(str(caught.value))
    assert len(set(texts)) == 1
    return texts[0]


@two_ranks
@pytest.mark.limit(120)
class TestWrongRoutesRaiseOnEveryRank:
    def test_a_wrong_rank_in(self, comm: Communicator) -> None:
        """For which there is a third rank, or oneself."""
        model = MultiNodeChainList(comm)
        if comm.rank == 0:
            model.add_link(Join(), rank_out=1)
            model.add_link(Join(), rank_in=comm.size - 1, rank_out=1)
        if comm.rank == 1:
            model.add_link(Join(), rank_in=0)
        assert '> rank 0  #1 Join' in same_error(comm, model)

    def test_a_swapped_pair(self, comm: Communicator) -> None:
        model = MultiNodeChainList(comm)
        if comm.rank == 0:
            model.add_link(Join(), rank_in=1)
            model.add_link(Join(), rank_out=1)
        if comm.rank == 1:
            model.add_link(Join(), rank_in=0, rank_out=0)
        assert 'All wait for each other' in same_error(comm, model)

    def test_a_missing_partner_which_then_comes(self, comm: Communicator) -> None:
        model = MultiNodeChainList(comm)
        if comm.rank == 0:
            model.add_link(make('f', 0), rank_out=1)
        assert 'rank 0 #0 sends to rank 1, which does not receive' in same_error(comm, model)
        assert '-> rank 1 ?' in model.describe()
        if comm.rank == 1:
            model.add_link(make('f', 0), rank_in=0)
        model(np.ones((1, WIDTH))).backward() if comm.rank != 1 else F.sum(model()).backward()

    def test_an_output_left_on_one_rank(self, comm: Communicator) -> None:
        model = MultiNodeChainList(comm)
        model.add_link(make('f', 0), rank_out=comm.rank if comm.rank == 1 else None)
        assert 'keeps an output for its own rank' in same_error(comm, model)

    def test_a_component_added_later_on_one_rank(self, comm: Communicator) -> None:
        """The other ranks hear of it, though nothing has changed there."""
        model = MultiNodeChainList(comm)
        model.add_link(make('f', 0))
        model(np.ones((1, WIDTH)))
        if comm.rank == 1:
            model.add_link(make('f', 0), rank_out=0)
        assert 'rank 1 #1 sends to rank 0' in same_error(comm, model)
        if comm.rank == 0:
            model.add_link(make('f', 0), rank_in=1)
        y = model(np.ones((1, WIDTH)))
        assert len(y) == 2 if comm.rank == 0 else y.shape == (1, WIDTH)

    def test_a_rank_that_does_something_else(self, comm: Communicator) -> None:
        model = MultiNodeChainList(comm)
        with pytest.raises(MismatchError, match='do not make the same call'):
            model() if comm.rank else comm.barrier()


@pytest.mark.parametrize(
    'kind', [int, np.int64, np.array, np.atleast_1d], ids=lambda kind: kind.__name__
)
def test_ranks_of_any_integer_kind(comm: Communicator, kind: Any) -> None:
    model = MultiNodeChainList(comm)
    model.add_link(L.Linear(2, 3, nobias=True), rank_out=kind(comm.rank))
    model.add_link(chainer.Sequential(F.identity), rank_in=kind(comm.rank))
    x = np.full((1, 2), comm.rank, np.float32)
    np.testing.assert_array_equal(model(x).array, x @ model[0].W.array.T)


def test_misuse(comm: Communicator) -> None:
    model = MultiNodeChainList(comm)
    for name in ('rank_in', 'rank_out'):
        for wrong in (comm.size, -1, [0, comm.size]):
            with pytest.raises(ValueError, match=f'add_link: {name} is not a rank'):
                model.add_link(L.Linear(1), **{name: wrong})
        for wrong in ('0', 0.0, np.array(0.0), [[0]], [None]):
            with pytest.raises(DtypeError, match=f'{name} is not made of ranks'):
                model.add_link(L.Linear(1), **{name: wrong})
        with pytest.raises(ArgumentError, match=f'{name} is empty'):
            model.add_link(L.Linear(1), **{name: []})
    with pytest.raises(TypeError, match=r'expected a chainer\.Link but got function'):
        model.add_link(F.relu)
    with pytest.raises(ArgumentError, match='no earlier component has given'):
        model.add_link(L.Linear(1), rank_in=comm.rank)
    with pytest.raises(ArgumentError, match="expected 'text' or 'dot'"):
        model.describe('png')
    assert len(model) == 0


@pytest.mark.parametrize('output', [None, (), 'text', [[np.ones(2)]]])
def test_what_cannot_be_sent(comm: Communicator, output: Any) -> None:
    class Source(chainer.Link):
        def forward(self) -> Any:
            return output

    model = MultiNodeChainList(comm)
    model.add_link(Source(), rank_out=comm.rank)
    model.add_link(Join(), rank_in=comm.rank)
    with pytest.raises(DtypeError, match='cannot send the output of a component'):
        model()


def test_outputs_keep_their_structure(comm: Communicator) -> None:
    class Source(chainer.Link):
        def forward(self, x: Variable) -> Any:
            return {'a': [x, (2 * x, 3)], 'b': None}

    model = MultiNodeChainList(comm)
    model.add_link(Source())
    y = model(chainer.Variable(np.ones(2)))
    assert (y['b'], y['a'][1][1]) == (None, 3)
    np.testing.assert_array_equal(y['a'][1][0].array, [2, 2])


def test_a_rank_without_components(comm: Communicator) -> None:
    delegate = MultiNodeChainList(comm)()
    assert (delegate.shape, delegate.name) == ((0,), 'delegate_variable')
    delegate.backward()


def test_own_queue_gives_what_a_message_would(comm: Communicator) -> None:
    """First in, first out; one variable in a tuple is a variable."""
    seen = []

    class Spy(chainer.Link):
        def forward(self, *xs: Any) -> Any:
            seen.append(xs)
            return (xs[0],) if len(seen) == 1 else (xs[0], xs[0])

    model, here = MultiNodeChainList(comm), comm.rank
    model.add_link(Spy(), rank_out=here)
    model.add_link(Spy(), rank_out=here)
    model.add_link(Spy(), rank_in=[here, here])
    model(np.ones(2))
    first, second = seen[2]
    assert isinstance(first, (chainer.Variable, np.ndarray))
    assert isinstance(second, tuple)


def two_way(comm: Communicator) -> MultiNodeChainList:
    """Rank 0 through rank 1 and back, where there is one."""
    model = MultiNodeChainList(comm)
    there = 1 % comm.size
    if comm.rank == 0:
        model.add_link(make('f', 0), rank_out=there)
    if comm.rank == there:
        model.add_link(make('g', 1), rank_in=0, rank_out=0)
    if comm.rank == 0:
        model.add_link(make('h', 2), rank_in=there)
    return model


def test_copies(comm: Communicator) -> None:
    """They share the communicator, and their components are their own."""
    model, x = two_way(comm), np.ones((2, WIDTH))
    y = model(x)
    for twin in (model.copy('copy'), copy.deepcopy(model)):
        assert twin._comm is comm
        for p in model.params():
            p.array = 0 * p.array
        again = twin(x)
        if comm.rank == 0:
            np.testing.assert_array_equal(again.array, y.array)
            assert (y.array != 0).any()
        model = twin
    model.add_link(Join(), rank_out=comm.rank)
    with pytest.raises(MismatchError):
        model(x)
    twin.copy()


def test_without_backprop(comm: Communicator) -> None:
    model = two_way(comm)
    with chainer.no_backprop_mode():
        y = model(np.ones((2, WIDTH)))
    assert y.creator is None


def test_one_inside_another(comm: Communicator) -> None:
    """The outer one compares the routes of both."""
    model, inner, there = MultiNodeChainList(comm), two_way(comm), 1 % comm.size
    model.add_link(inner, rank_out=there if comm.rank == 0 else None)
    if comm.rank == there:
        model.add_link(make('k', 3), rank_in=0)
    y = model(np.ones((2, WIDTH)))
    if comm.rank == there:  # if that is not rank 0, the inner one has a delegate as its output
        y = F.sum(y[1] if comm.size > 1 else y)
    y.backward()
    assert all(p.grad is not None and p.grad.any() for p in inner.params())
    if comm.rank == 0:
        inner.add_link(make('k', 4), rank_out=comm.size - 1)
    assert '> rank 0' in same_error(comm, model)


@two_ranks
@pytest.mark.limit(120)
def test_the_inner_one_does_not_wait_for_all_ranks(comm: Communicator) -> None:
    """They come to it one after another."""
    model, inner = MultiNodeChainList(comm), MultiNodeChainList(comm)
    inner.add_link(make('f', 0), rank_out=comm.rank)
    inner.add_link(make('g', 1), rank_in=comm.rank)
    before = comm.rank - 1 if comm.rank else None
    after = comm.rank + 1 if comm.rank < comm.size - 1 else None
    model.add_link(inner, before, after)
    y = model(np.ones((1, WIDTH)))
    (y if after else F.sum(y)).backward()
    assert all(p.grad.any() for p in inner.params())


@two_ranks
@pytest.mark.limit(120)
@pytest.mark.parametrize('goes_out', [False, True])
def test_one_inside_a_chain_of_another_does_not_wait_for_all_ranks(
    comm: Communicator, goes_out: bool
) -> None:
    """On rank 0 alone, or with its messages to rank 1, which are in no table of rank 0."""
    model, inner = MultiNodeChainList(comm), MultiNodeChainList(comm)
    if comm.rank == 0:
        inner.add_link(make('f', 0), rank_out=1 if goes_out else 0)
        inner.add_link(make('g', 1), rank_in=1 if goes_out else 0)
        model.add_link(chainer.Sequential(inner, F.relu), rank_out=1)
    elif comm.rank == 1:
        if goes_out:
            model.add_link(make('f', 0), rank_in=0, rank_out=0)
        model.add_link(make('g', 1), rank_in=0)
    y = model(np.ones((1, WIDTH)))
    assert y.shape == ((1, WIDTH) if comm.rank == 1 else (0,))
    (F.sum(y) if comm.rank == 1 else y).backward()
    assert all(p.grad.any() for p in model.params())


def test_without_checks_only_the_first_call_is_collective(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comm.meetings, 'checks', False)
    model = MultiNodeChainList(comm)
    model.add_link(make('f', 0))
    model(np.ones((1, WIDTH)))
    if comm.rank == 0:
        model(np.ones((1, WIDTH)))


def test_long_messages(comm: Communicator) -> None:
    """That MPI does not buffer; forward and backward."""
    model = two_way(comm)
    y = model(np.ones((40_000, WIDTH)))
    (F.sum(y) if comm.rank == 0 else y).backward()
    assert all(p.grad.any() for p in model.params())


def test_describe(comm: Communicator) -> None:
    model = two_way(comm)
    before = model.describe()
    model(np.ones((2, WIDTH)))
    assert model.describe() == before
    if comm.size > 1:
        assert before.splitlines() == [
            '  rank 0  #0 Join  inputs     -> rank 1 #0',
            '  rank 0  #1 Join  rank 1 #0  -> output',
            '  rank 1  #0 Join  rank 0 #0  -> rank 0 #1',
        ]
        assert '"0.0" -> "1.0";' in model.describe('dot')


def test_what_components_are_called(comm: Communicator) -> None:
    model = MultiNodeChainList(comm)
    model.add_link(chainer.Sequential(L.Linear(1), F.relu, L.Linear(1)))
    model.add_link(chainer.Sequential())
    first, second = model.describe().splitlines()[:2]
    assert '#0 Linear+relu+Linear' in first
    assert '#1 Sequential' in second


def test_names() -> None:
    assert mnx.MultiNodeChainList is MultiNodeChainList
    assert issubclass(MultiNodeChainList, chainer.ChainList)
    assert isinstance(Pair(), Join)
