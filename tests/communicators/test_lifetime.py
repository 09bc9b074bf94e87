"""Making, splitting, configuring and ending communicators."""

from __future__ import annotations

import gc

import chainer
import numpy as np
import pytest

import mnx
from mnx import testing
from mnx.communicators import Communicator
from mnx.communicators.choice import choose
from mnx.communicators.factory import COMMUNICATORS
from mnx.communicators.local import LocalCommunicator
from mnx.errors import ArgumentError, ClosedError, MismatchError, MnxError, RemoteError
from mnx.topology import Topology


def test_unknown_name(comm: Communicator) -> None:
    with pytest.raises(ValueError, match=r'Unrecognized communicator: "x".*naive') as caught:
        mnx.create_communicator('x')
    assert isinstance(caught.value, MnxError)


def test_unknown_keyword(comm: Communicator) -> None:
    with pytest.raises(TypeError, match='foo'):
        mnx.create_communicator('naive', foo=1)


CHOICES = [
    (['a'], 'naive'),
    (['a', 'a', 'a'], 'shared_memory'),
    (['a', 'b'], 'flat'),
    (['a', 'b', 'a'], 'two_dimensional'),
]


@pytest.mark.parametrize(('hosts', 'name'), CHOICES)
def test_auto_is_chosen_by_the_nodes(hosts: list[str], name: str) -> None:
    assert choose(Topology.of_hosts(hosts)).name == name


def test_auto_says_why(comm: Communicator) -> None:
    with mnx.create_communicator() as made:
        assert made.describe().startswith(f"{made.name} ('auto': ")
        part = made.split(0, made.rank)
        assert type(part) is type(made)
    with testing.create_on_nodes('auto', [1] * comm.size) as made:
        assert (made.name, made.inter_size) == ('flat' if comm.size > 1 else 'naive', comm.size)


@pytest.mark.needs_ranks(2)
def test_shared_memory_needs_one_node(comm: Communicator) -> None:
    with pytest.raises(ArgumentError, match='two_dimensional'):
        testing.create_on_nodes('shared_memory', [1])


def test_old_name(comm: Communicator) -> None:
    with mnx.create_communicator('single_node') as made:
        assert made.name == 'shared_memory'


@pytest.mark.parametrize('name', sorted(n for n, c in COMMUNICATORS.items() if not c.needs_nccl))
def test_names_and_ranks(comm: Communicator, name: str) -> None:
    with mnx.create_communicator(name) as made:
        alone = name == 'local'
        assert (made.rank, made.size) == ((0, 1) if alone else (comm.rank, comm.size))
        assert (made.intra_rank, made.intra_size) == (made.rank, made.size)
        assert (made.inter_rank, made.inter_size) == (0, 1)
        assert repr(made) == f'<mnx {name} communicator, rank {made.rank} of {made.size}>'


def test_configuration(new_comm: Communicator) -> None:
    comm = new_comm
    assert comm.get_config() == {'allreduce_grad_dtype': None, 'batched_copy': True}
    comm.set_config('batched_copy', False)
    comm.set_config('allreduce_grad_dtype', 'float16')
    half = comm.split(0, comm.rank)
    for one in (comm, half):
        assert one.get_config('batched_copy') is False
        assert one.get_config('allreduce_grad_dtype') == np.float16
    half.set_config('allreduce_grad_dtype', None)
    assert comm.get_config('allreduce_grad_dtype') == np.float16  # not shared
    assert mnx.create_communicator('local').get_config('batched_copy') is True
    with pytest.raises(ValueError, match='nonsense'):
        comm.set_config('nonsense')
    with pytest.raises(KeyError):
        comm.get_config('nonsense')


def test_split(new_comm: Communicator) -> None:
    comm = new_comm
    part = comm.split(comm.rank % 2, -comm.rank)
    assert type(part) is type(comm)
    members = [r for r in range(comm.size) if r % 2 == comm.rank % 2][::-1]
    assert (part.rank, part.size) == (members.index(comm.rank), len(members))
    assert part.allgather_obj(comm.rank) == members
    model = chainer.links.Linear(2, 1)
    model.W.grad = np.full((1, 2), comm.rank, 'f4')
    model.b.cleargrad()
    part.multi_node_mean_grad(model)
    np.testing.assert_allclose(model.W.grad, np.mean(members))


def test_group(new_comm: Communicator) -> None:
    comm = new_comm
    members = list(range(comm.size))[::-2]
    part = comm.group(np.array(members))
    assert (part is None) == (comm.rank not in members)
    if part is not None:
        assert part.allgather_obj(comm.rank) == members
        assert type(part) is type(comm)
    for bad in ([comm.size], [0, 0], [-1], 0):
        with pytest.raises(ArgumentError):
            comm.group(bad)
    if comm.size > 1:
        with pytest.raises(MismatchError):
            comm.group([comm.rank])


def test_without_checks(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNX_CHECK=0: a wrong argument raises where it is, and nobody else hears of it."""
    monkeypatch.setenv('MNX_CHECK', '0')
    with mnx.create_communicator('naive') as made:
        if made.rank == 0:
            with pytest.raises(ArgumentError):
                made.bcast(np.ones(1), root=99)
        assert made.allreduce(np.ones(2))[0] == made.size
        with pytest.raises((ArgumentError, RemoteError)), made.together('vote'):  # noqa: PT012
            if made.rank == made.size - 1:
                raise ArgumentError('sections of users are voted on all the same')


def test_a_rank_without_color_gets_none(comm: Communicator) -> None:
    part = comm.split(None if comm.rank == 0 else 1, comm.rank)
    assert (part is None) == (comm.rank == 0)
    if part is not None:
        assert part.size == comm.size - 1


@pytest.fixture
def few(comm: Communicator) -> Communicator:
    """At most two ranks: with more the same takes a minute."""
    if comm.size > 2:
        pytest.skip('runs on 1 and 2 ranks')
    return comm


@pytest.mark.parametrize('how', ['dropped', 'finalized'])
def test_4000_splits_in_a_row(few: Communicator, how: str) -> None:
    """An MPI library has some 2,000 communicators at a time."""
    comm = few
    for i in range(4000):
        part = comm.split(i % 2 if comm.rank else 0, comm.rank)
        if how == 'finalized':
            part.finalize()
    if how == 'dropped':
        assert part.allreduce(np.ones(1))[0] == part.size


def test_a_split_in_use_on_one_rank_is_not_freed(comm: Communicator) -> None:
    kept = comm.split(0, comm.rank)
    if comm.rank:
        group, kept = kept, None
    else:
        group = kept
    for _ in range(3):
        comm.split(0, comm.rank)
    assert group.allreduce(np.ones(1))[0] == comm.size
    del group, kept
    gc.collect()
    comm.split(0, comm.rank)


BAD_SPLITS = [(-1, 0), (2**31, 0), (0, 2**31), (0.5, 0), (0, 'a')]


@pytest.mark.parametrize(('color', 'key'), BAD_SPLITS)
def test_bad_colors_and_keys(comm: Communicator, color: object, key: object) -> None:
    """On the last rank only; all raise."""
    odd = comm.rank == comm.size - 1
    with pytest.raises(ArgumentError, match=r'split: a (color|key) is'):
        comm.split(color if odd else 0, key if odd else 0)
    assert comm.split(np.int64(0), np.int32(1)).size == comm.size


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize(
    'wrong', [{'communicator_name': 'x'}, *({'allreduce_grad_dtype': d} for d in ('i4', 'none'))]
)
def test_a_wrong_argument_on_one_rank(comm: Communicator, wrong: dict[str, str]) -> None:
    with pytest.raises(ArgumentError):
        mnx.create_communicator(**(wrong if comm.rank == 1 else {}))
    with pytest.raises(MismatchError, match='flat'):
        mnx.create_communicator('flat' if comm.rank == 1 else 'naive')


@pytest.mark.usefixtures('few')
def test_finalize_frees_what_was_split() -> None:
    for _ in range(1200):  # each holds seven communicators of MPI with its window and split
        with mnx.create_communicator('naive') as made:
            part = made.split(0, made.rank)
    with pytest.raises(ClosedError, match='finalized'):
        part.barrier()


@pytest.mark.parametrize('call', ['send', 'recv', 'send_obj', 'recv_obj'])
def test_messages_after_finalize(comm: Communicator, call: str) -> None:
    part = comm.split(0, comm.rank)
    part.finalize()
    args = {'send': (np.ones(1), 0), 'recv': (0,), 'send_obj': (1, 0), 'recv_obj': (0,)}[call]
    with pytest.raises(ClosedError, match=call):
        getattr(part, call)(*args)


def test_after_finalize(new_comm: Communicator) -> None:
    part = new_comm.split(0, new_comm.rank)
    part.finalize()
    part.finalize()
    with pytest.raises(ClosedError, match='finalized'):
        part.allreduce(np.ones(1))
    new_comm.barrier()


def test_a_failing_block_is_not_finalized(comm: Communicator) -> None:
    """The failing rank must not wait for the others in the finalization."""
    with pytest.raises(KeyError), mnx.create_communicator('naive') as made:
        raise KeyError
    made.barrier()
    made.finalize()


@pytest.mark.needs_ranks(2)
def test_the_users_communicator_is_theirs(comm: Communicator) -> None:
    """A message of the user's own, sent before and received after, meets none of mnx's."""
    mpi = pytest.importorskip('mpi4py.MPI')
    user = mpi.COMM_WORLD.Dup()
    made = mnx.create_communicator('flat', user)
    assert made.mpi_comm is user
    request = user.isend('mine', dest=(comm.rank + 1) % comm.size, tag=0)
    made.send_obj('other', (comm.rank + 1) % comm.size)
    gathered = made.allgather(np.array([comm.rank]))
    assert [int(x[0]) for x in gathered] == list(range(comm.size))
    assert made.recv_obj((comm.rank - 1) % comm.size) == 'other'
    assert user.recv(source=(comm.rank - 1) % comm.size) == 'mine'
    request.wait()
    made.finalize()
    user.Free()


def test_part_of_the_ranks(comm: Communicator) -> None:
    mpi = pytest.importorskip('mpi4py.MPI')
    part = mpi.COMM_WORLD.Split(comm.rank % 2, comm.rank)
    with mnx.create_communicator('auto', part) as made:
        assert made.allgather_obj(comm.rank) == list(range(comm.rank % 2, comm.size, 2))
    part.Free()


def test_local_needs_nothing(comm: Communicator) -> None:
    alone = mnx.create_communicator('local')
    assert isinstance(alone, LocalCommunicator)
    assert alone.mpi_comm is None
    child = alone.split(0, 0)
    assert child.size == 1
    assert alone.split(None, 0) is None
    x = np.arange(3.0)
    np.testing.assert_array_equal(child.allreduce(x, 'mean'), x)
    np.testing.assert_array_equal(child.alltoall([x])[0], x)
    assert child.scatter_obj(['a']) == 'a'
    with pytest.raises(ArgumentError):
        child.bcast(x, root=1)


def test_what_is_no_communicator_of_mpi(comm: Communicator) -> None:
    for wrong in (comm, 3, 'world'):
        with pytest.raises(ArgumentError, match='intracommunicator'):
            mnx.create_communicator('naive', wrong)
