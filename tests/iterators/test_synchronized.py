from itertools import chain

import numpy as np
import pytest
from chainer.iterators import MultiprocessIterator, MultithreadIterator, SerialIterator

from mnx.errors import ArgumentError, MismatchError
from mnx.iterators import create_multi_node_iterator, create_synchronized_iterator


@pytest.fixture(autouse=True)
def own_random_numbers(comm):
    state = np.random.get_state()
    np.random.seed(comm.rank)
    yield
    np.random.set_state(state)


@pytest.mark.parametrize('kind', [SerialIterator, MultithreadIterator, MultiprocessIterator])
def test_the_same_batches_in_every_epoch(comm, kind):
    """Each rank has numbers of its own in the same places; epochs after the first count, too."""
    options = {'n_processes': 1} if kind is MultiprocessIterator else {}
    data = np.arange(10) + 100 * comm.rank
    iterator = create_synchronized_iterator(kind(data, 4, **options), comm)
    served = [[int(x) - 100 * comm.rank for x in iterator.next()] for _ in range(15)]
    iterator.finalize()
    assert len({repr(s) for s in comm.allgather_obj(served)}) == 1
    epochs = [list(chain(*served[i : i + 5])) for i in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [sorted([*range(10)] * 2)] * 3
    assert len({repr(s) for s in epochs}) == 3


def test_the_order_follows_from_the_seed_of_rank_0(comm):
    orders = []
    for _ in range(2):
        np.random.seed(5 + comm.rank)
        iterator = create_synchronized_iterator(SerialIterator(range(20), 20), comm)
        orders.append(iterator.next())
    assert orders[0] == orders[1] != sorted(orders[0])


def test_from_the_start_and_shuffled(comm):
    iterator = SerialIterator(range(20), 4, shuffle=False)
    for _ in range(comm.rank + 1):
        iterator.next()
    iterator = create_synchronized_iterator(iterator, comm)
    assert (iterator.epoch, iterator.current_position) == (0, 0)
    assert list(chain(*(iterator.next() for _ in range(5)))) != list(range(20))
    assert iterator.is_new_epoch


def test_an_iterator_without_order_sampler(comm):
    wrong = iter([1])
    with pytest.raises(ValueError, match='order_sampler'):
        create_synchronized_iterator(wrong, comm)


@pytest.mark.needs_ranks(2)
def test_one_rank_without_order_sampler(comm):
    stub = create_multi_node_iterator(SerialIterator([1], 1), comm)
    with pytest.raises(ArgumentError, match='order_sampler'):
        create_synchronized_iterator(SerialIterator([1], 1) if comm.rank == 0 else stub, comm)


@pytest.mark.needs_ranks(2)
def test_different_lengths(comm):
    with pytest.raises(MismatchError, match='length=5'):
        create_synchronized_iterator(SerialIterator(range(5 + comm.rank), 2), comm)
