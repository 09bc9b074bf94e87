import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from chainer.iterators import SerialIterator, ShuffleOrderSampler

from mnx.training import random_state


@pytest.fixture(autouse=True)
def leave_generators_alone():
    states = np.random.get_state(), random.getstate()
    yield
    np.random.set_state(states[0])
    random.setstate(states[1])


class GeneratorSampler:
    def __init__(self, *generators):
        self.generators = dict(enumerate(generators))
        self.generator = generators[0]

    def __call__(self, order, position):
        return self.generator.permutation(len(order))


def trainer_with(sampler=None):
    iterator = SerialIterator(range(10), 2, order_sampler=sampler)
    updater = SimpleNamespace(_iterators={'main': iterator}, iteration=3)
    return SimpleNamespace(updater=updater)


def draw():
    """Numbers of all distributions that keep something back."""
    return [np.random.rand(3).tolist(), np.random.randn(), random.random(), random.gauss(0, 1)]


@pytest.mark.parametrize('before', [0, 1, 700])
def test_the_global_generators_go_on_where_they_were(comm, before):
    trainer = trainer_with()
    np.random.seed(comm.rank)
    random.seed(comm.rank)
    for _ in range(before):
        draw()
    text = random_state.capture(trainer)
    expected = [draw() for _ in range(5)]
    np.random.seed(99)
    random.seed(99)
    random_state.restore(text, trainer)
    assert [draw() for _ in range(5)] == expected


def test_capturing_changes_nothing():
    trainer = trainer_with()
    np.random.seed(5)
    random.seed(5)
    expected = draw()
    np.random.seed(5)
    random.seed(5)
    random_state.capture(trainer)
    assert draw() == expected


@pytest.mark.parametrize(
    'make',
    [
        lambda seed: ShuffleOrderSampler(np.random.RandomState(seed)),
        lambda seed: ShuffleOrderSampler(np.random.default_rng(seed)),
        lambda seed: GeneratorSampler(np.random.Generator(np.random.MT19937(seed))),
        lambda seed: GeneratorSampler(np.random.Generator(np.random.Philox(seed))),
        lambda seed: GeneratorSampler(np.random.Generator(np.random.SFC64(seed))),
    ],
)
def test_generators_of_order_samplers(make):
    trainer = trainer_with(make(1))
    text = random_state.capture(trainer)
    sampler = trainer.updater._iterators['main'].order_sampler
    expected = [sampler(range(10), 0).tolist() for _ in range(5)]
    other = trainer_with(make(2))
    random_state.restore(text, other)
    sampler = other.updater._iterators['main'].order_sampler
    assert [sampler(range(10), 0).tolist() for _ in range(5)] == expected


@pytest.mark.gpu
def test_cupys_generator_goes_on_alike():
    cupy = pytest.importorskip('cupy')
    if not cupy.is_available():
        pytest.skip('no GPU')
    trainer = trainer_with()
    cupy.random.rand(3)
    text = random_state.capture(trainer)
    expected = cupy.random.rand(5).get()
    cupy.random.seed(1)
    random_state.restore(text, trainer)
    np.testing.assert_array_equal(cupy.random.rand(5).get(), expected)
    # another iteration, another seed
    trainer.updater.iteration += 1
    random_state.capture(trainer)
    assert not np.array_equal(cupy.random.rand(5).get(), expected)


class TestSpread:
    """To another number of ranks."""

    def texts(self, seeds, orders):
        found = []
        for seed, order in zip(seeds, orders, strict=True):
            np.random.seed(seed)
            random.seed(seed)
            generators = np.random.RandomState(order), np.random.default_rng(order)
            sampler = GeneratorSampler(*generators)
            sampler.second = generators[1]
            found.append(random_state.capture(trainer_with(sampler)))
        return found

    def draws_of(self, text):
        sampler = GeneratorSampler(np.random.RandomState(77), np.random.default_rng(77))
        sampler.second = sampler.generators[1]
        random_state.restore(text, trainer_with(sampler))
        orders = [sampler.generator.rand(), sampler.second.random()]
        return draw(), orders

    def test_the_first_ranks_keep_theirs(self):
        texts = self.texts([1, 2, 3], [4, 5, 6])
        assert [random_state.spread(texts, rank) for rank in range(2)] == texts[:2]

    def test_new_ranks_draw_other_numbers(self):
        texts = self.texts([1, 2], [4, 5])
        found = [self.draws_of(random_state.spread(texts, rank)) for rank in range(4)]
        assert len({str(numbers) for numbers, _ in found}) == 4
        assert len({str(orders) for _, orders in found}) == 4
        assert found[3] == self.draws_of(random_state.spread(texts, 3))

    def test_what_all_ranks_share_is_shared_with_new_ones(self):
        texts = self.texts([1, 2], [4, 4])
        found = [self.draws_of(random_state.spread(texts, rank)) for rank in range(4)]
        assert len({str(numbers) for numbers, _ in found}) == 4
        assert len({str(orders) for _, orders in found}) == 1


def test_a_state_of_a_gpu_where_there_is_none():
    if random_state.cuda.available:
        pytest.skip('there is one')
    trainer = SimpleNamespace(updater=SimpleNamespace(iteration=1))
    states = json.loads(random_state.capture(trainer))
    expected = np.random.rand()
    with pytest.warns(UserWarning, match='drawn on a GPU, and here is none'):
        random_state.restore(json.dumps({**states, 'cupy': 5}), trainer)
    assert np.random.rand() == expected
