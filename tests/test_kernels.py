"""The loops in C do what NumPy does, to the same bits, or say that they have not."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mnx import kernels, packing
from mnx.arrays import address_of
from tests.launching import alone, mpiexec

needs_kernels = pytest.mark.skipif(
    not kernels.built, reason='mnx was installed without a C compiler, or runs with MNX_KERNELS=0'
)
pytestmark = [alone, needs_kernels]

needs_conversion = pytest.mark.skipif(
    not kernels.gather([np.zeros(1, 'f2')], np.empty(1, 'f4')),
    reason='no F16C: this processor, or this platform, leaves float16 to NumPy',
)

DTYPES = ['?', 'i1', 'u2', 'i4', 'i8', 'f2', 'f4', 'f8', 'g', 'c8', 'c16', 'G']
BLOCK = 2048  # of _kernels.c


def numbers(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * 9, dtype)


# --- gather and scatter ----------------------------------------------------------------------


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=8),
    dtype=st.sampled_from(DTYPES),
)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_there_and_back(shapes: list[tuple[int, ...]], dtype: str) -> None:
    arrays = [numbers(i, shape, dtype) for i, shape in enumerate(shapes)]
    flat = np.empty(sum(x.size for x in arrays), dtype)
    assert kernels.gather(arrays, flat)
    assert flat.tobytes() == b''.join(x.tobytes() for x in arrays)
    copies = [np.zeros_like(x) for x in arrays]
    assert kernels.scatter(flat, copies)
    assert [x.tobytes() for x in copies] == [x.tobytes() for x in arrays]


@needs_conversion
@pytest.mark.parametrize('length', [0, 1, 7, 8, 9, 1000, 100_000])
def test_float16_is_rounded_as_by_numpy(length: int) -> None:
    exact = numbers(0, (length,), 'f4') * np.float32(7000)  # infinities, too
    halves = np.empty(length, 'f2')
    assert kernels.gather([exact], halves)
    with np.errstate(over='ignore'):
        assert halves.tobytes() == exact.astype('f2').tobytes()
    back = np.empty(length, 'f4')
    assert kernels.scatter(halves, [back])
    assert back.tobytes() == halves.astype('f4').tobytes()


@needs_conversion
def test_all_of_float16() -> None:
    halves = np.arange(2**16, dtype='u2').view('f2')
    numbers = np.empty(2**16, 'f4')
    assert kernels.gather([halves], numbers)
    np.testing.assert_array_equal(numbers, halves.astype('f4'))
    back = np.empty(2**16, 'f2')
    assert kernels.gather([numbers], back)
    np.testing.assert_array_equal(back, halves)
    # between two neighbours: to the nearest, to even if both are as near
    between = np.nextafter(numbers[:31743], np.float32(np.inf)) + np.diff(numbers[:31744]) / 2
    assert kernels.gather([between], back[:31743])
    np.testing.assert_array_equal(back[:31743], between.astype('f2'))


@needs_conversion
def test_several_float16_share_a_buffer_of_float32() -> None:
    arrays = [numbers(i, (size,), 'f2') for i, size in enumerate([3, 0, 8, 13])]
    flat = np.empty(24, 'f4')
    assert kernels.gather(arrays, flat)
    np.testing.assert_array_equal(flat, np.concatenate(arrays).astype('f4'))


def strange_arrays() -> dict[str, np.ndarray]:
    class Subclass(np.ndarray):
        pass

    read_only = np.zeros(4, 'f4')
    read_only.flags.writeable = False
    return {
        'another dtype': np.zeros(4, 'i4'),
        'the other byte order': np.zeros(4, '>f4' if sys.byteorder == 'little' else '<f4'),
        'objects': np.zeros(4, 'O'),
        'a date': np.zeros(4, 'M8[s]'),
        'a subclass': np.zeros(4, 'f4').view(Subclass),
        'every second': np.zeros(8, 'f4')[::2],
        'Fortran order': np.zeros((2, 2), 'f4', order='F'),
        'not aligned': np.zeros(17, 'u1')[1:].view('f4'),
        'too long': np.zeros(5, 'f4'),
        'too short': np.zeros(3, 'f4'),
        'read-only': read_only,
    }


@pytest.mark.parametrize('kind', strange_arrays())
def test_what_is_left_to_numpy(kind: str) -> None:
    strange, plain = strange_arrays()[kind], np.zeros(4, 'f4')
    if kind != 'read-only':
        assert not kernels.gather([strange], plain)
    assert not kernels.scatter(plain, [strange])
    if kind != 'Fortran order':
        assert not kernels.gather([plain], strange)
    assert not kernels.add([plain, plain], strange, 1.0, None)
    assert not kernels.add([plain, plain], plain.copy(), 1.0, strange)
    if kind != 'read-only':
        assert not kernels.add([plain, strange], plain.copy(), 1.0, None)


@pytest.mark.parametrize('call', [kernels.gather, kernels.scatter, kernels.add, kernels.alike])
@pytest.mark.parametrize('given', [(), (1,), (None, None), ([], 3), ((), ()), ([None], [], 'x')])
def test_what_is_no_array(call, given) -> None:
    assert not call(*given)


def test_a_divisor_is_a_number() -> None:
    x = np.zeros(4, 'f4')
    with pytest.raises(TypeError):
        kernels.add([x, x], x.copy(), 'two', None)


def test_nothing_is_kept() -> None:
    arrays = [np.ones(n, 'f4') for n in (3, 200_000)]
    flat = np.empty(200_003, 'f4')
    before = [sys.getrefcount(x) for x in (*arrays, flat)]
    for _ in range(3):
        kernels.gather(arrays, flat)
        kernels.scatter(flat, arrays)
        kernels.add([flat, flat], flat.copy(), 2.0, None)
        kernels.alike(arrays, [(3,), (200_000,)], [x.dtype for x in arrays])
    assert [sys.getrefcount(x) for x in (*arrays, flat)] == before


def test_a_list_that_another_thread_empties() -> None:
    """While a long array is copied, other threads run."""
    flat, done = np.empty(3 * 2_000_000, 'f4'), []

    def gather(arrays: list[np.ndarray]) -> None:
        done.append(kernels.gather(arrays, flat))

    for _ in range(5):
        arrays = [np.ones(2_000_000, 'f4') for _ in range(3)]
        thread = threading.Thread(target=gather, args=[arrays])
        thread.start()
        arrays.clear()
        thread.join()
    assert len(done) == 5


# --- add -------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [0, 1, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize('divisor', [1.0, 2.0, 3.0, 4.0, 0.75])
@pytest.mark.parametrize('count', [2, 3, 5])
@pytest.mark.parametrize('dtype', ['f4', 'f8'])
def test_sums(dtype: str, count: int, divisor: float, size: int) -> None:
    parts = [numbers(i, (size,), dtype) for i in range(count)]
    expected = parts[0].copy()
    for part in parts[1:]:
        expected += part
    expected /= np.dtype(dtype).type(divisor)
    total, twin = np.empty(size, dtype), np.empty(size, dtype)
    assert kernels.add(parts, total, divisor, twin)
    assert total.tobytes() == twin.tobytes() == expected.tobytes()
    assert kernels.add(parts, total, divisor, parts[1])  # in place
    assert parts[1].tobytes() == expected.tobytes()


def test_sums_without_kernels(without_kernels) -> None:
    for count in (1, 2, 3):
        parts = [numbers(i, (99,), 'f4') for i in range(count)]
        expected = sum(parts[1:], parts[0]) / np.float32(3)
        total = np.empty(99, 'f4')
        packing.add_up(parts, total, 3.0, parts[0])
        assert total.tobytes() == parts[0].tobytes() == expected.tobytes()


def test_sums_of_other_dtypes_are_left_to_numpy() -> None:
    for dtype in ('f2', 'i4', 'c8', '?'):
        x = np.ones(3, dtype)
        assert not kernels.add([x, x], x.copy(), 1.0, None)


# --- a window --------------------------------------------------------------------------------


@pytest.mark.skipif(not kernels.built, reason='there is no kernel')
@pytest.mark.parametrize('number', range(9))
def test_a_window_of_other_kinds_is_refused(number: int) -> None:
    x, memory = np.ones(8), np.zeros(100, np.int64)
    slots = np.array([address_of(memory[8:]), address_of(memory[50:])])
    places, borders = np.full((2, 1), address_of(x)), np.array([0, x.nbytes])
    given = [slots, 0, 1, np.zeros(2, np.int64), places, borders, 64, 8, 1.0]
    wrong = {0: slots[:1], 1: 2, 3: slots[:1], 4: places[:1], 5: borders[:1], 6: 4, 7: 2}
    kinds = [None, 'a', [1], np.zeros(2, np.int32), np.zeros((1, 2, 1), np.int64)]
    kinds += [wrong[number]] if number in wrong else []
    for odd in kinds:
        with pytest.raises((TypeError, ValueError)):
            kernels.sum_in_window(*given[:number], odd, *given[number + 1 :])
    with pytest.raises(TypeError):
        kernels.sum_in_window(*given[:number])
    assert not memory.any()
    for looks in (1, 5, -5):  # the other rank has not come
        given[2] = looks
        assert not kernels.sum_in_window(*given)
        assert memory[0] == 1


# --- alike -----------------------------------------------------------------------------------


def test_alike() -> None:
    arrays = [np.zeros(shape, 'f4') for shape in [(3,), (2, 2), (), (0, 5)] * 100]
    shapes, dtypes = [x.shape for x in arrays], [x.dtype for x in arrays]
    assert kernels.alike(arrays, shapes, dtypes)
    assert kernels.alike([np.copy(x, order='F') for x in arrays], shapes, dtypes)
    assert kernels.alike([], [], [])
    assert not kernels.alike(arrays[:-1], shapes, dtypes)
    for shape in [('a',), (2**70,), (3.0,), [3], 3, None]:
        assert not kernels.alike(arrays[:1], [shape], dtypes[:1])
    for strange in [
        None,
        np.zeros((4,), 'f4'),
        np.zeros((3,), 'f8'),
        np.zeros((1, 3), 'f4'),
        np.zeros(4, 'f4')[1:],  # memory that is another's
        np.zeros(3, 'f4').view(np.recarray),
        arrays[-4],  # twice
    ]:
        assert not kernels.alike([strange, *arrays[1:]], shapes, dtypes), strange


@pytest.mark.skipif(not kernels.built, reason='there is no kernel')
def test_unpickled_arrays_are_like_others() -> None:
    """Their dtypes are equal, but other objects."""
    x = np.arange(5, dtype='f4')
    y = pickle.loads(pickle.dumps(x))
    assert y.dtype is not x.dtype
    for a, b in ((x, y), (y, x)):
        total = np.zeros_like(a)
        assert kernels.add([a, b], total, 1.0, None)
        np.testing.assert_array_equal(total, 2 * x)
        assert kernels.gather([b], total)
        np.testing.assert_array_equal(total, x)
        assert kernels.scatter(a, [total])
        assert kernels.alike([total], [(5,)], [b.dtype])
    assert not kernels.alike([y], [(5,)], [np.dtype('>f4')])
    assert not kernels.alike([y], [(5,)], ['f4'])


# --- with and without ------------------------------------------------------------------------


def test_can_be_left_out() -> None:
    program = 'import os; os.environ["MNX_KERNELS"] = "0"; from mnx import kernels as k; '
    program += 'print(k.built, k.alike([], [], []), k.add())'
    found = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ['False', 'False', 'False']


ONE_RANK_WITHOUT = """
import os, sys
from mpi4py import MPI

rank = MPI.COMM_WORLD.rank
os.environ['MNX_KERNELS'] = sys.argv[1][rank]
import chainer, mnx, numpy as np
from mnx import kernels

assert kernels.built == (sys.argv[1][rank] == '1')
with mnx.create_communicator('shared_memory') as comm:
    model, rng = chainer.Link(), np.random.default_rng(rank)
    with model.init_scope():
        for i, (size, dtype) in enumerate([(400_000, 'f4'), (7, 'f4'), (9_000, 'f2'), (5, 'f8')]):
            setattr(model, f'p{i}', chainer.Parameter(np.zeros(size, dtype)))
    for param in model.params():
        param.grad = rng.standard_normal(param.shape).astype(param.dtype)
    comm.multi_node_mean_grad(model)
    grads = b''.join(param.grad.tobytes() for param in model.params())
    everyones = comm.allgather_obj(grads)
    assert len(set(everyones)) == 1
    if rank == 0:
        import hashlib
        print('bits', hashlib.sha256(grads).hexdigest())
"""


@pytest.mark.slow
def test_ranks_with_and_without_have_the_same_bits() -> None:
    found = set()
    for built in ('000', '111', '101'):
        job = mpiexec(3, ONE_RANK_WITHOUT, built)
        assert job.returncode == 0, job.stdout
        found |= {line for line in job.stdout.splitlines() if line.startswith('bits')}
    assert len(found) == 1
