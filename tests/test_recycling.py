"""Memory is used again when nobody can see it any more, and not before."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from mnx import kernels, recycling
from tests.launching import alone

pytestmark = alone


LONG = recycling.FROM_BYTES
FLOAT = np.dtype(np.float64)


@pytest.fixture(autouse=True, params=['C', 'Python'])
def _empty_pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, '_blocks', {})
    if request.param == 'Python':
        monkeypatch.setattr(kernels, 'on_unused', lambda *_: False)


def address(x: np.ndarray) -> int:
    return x.__array_interface__['data'][0]


def test_an_array_as_any_other() -> None:
    x = recycling.empty((LONG // 8, 2), FLOAT)
    assert (x.shape, x.dtype) == ((LONG // 8, 2), FLOAT)
    assert x.flags.c_contiguous
    assert x.flags.writeable
    assert x.flags.aligned
    x[...] = 3
    assert x.sum() == 3 * x.size


def test_its_memory_is_used_again() -> None:
    x = recycling.empty((LONG,), FLOAT)
    before = address(x)
    del x
    assert address(recycling.empty((LONG // 2, 2), FLOAT)) == before


@pytest.mark.parametrize(
    'look',
    [
        lambda x: x[5:],
        lambda x: x.reshape(2, -1).T,
        lambda x: memoryview(x),
        lambda x: x.view('u1'),
    ],
    ids=['slice', 'transposed', 'memoryview', 'bytes'],
)
def test_not_while_somebody_looks(look: object) -> None:
    x = recycling.empty((LONG,), FLOAT)
    before, seen = address(x), look(x)
    x[...] = 1
    del x
    other = recycling.empty((LONG,), FLOAT)
    assert address(other) != before
    other[...] = 2
    assert np.asarray(seen).ravel()[-1] in (1, np.ones(1).view('u1')[-1])
    del seen
    assert address(recycling.empty((LONG,), FLOAT)) == before


def test_much_longer_ones_and_short_ones_are_new() -> None:
    x = recycling.empty((LONG // 8,), FLOAT)
    before = address(x)
    del x
    assert address(recycling.empty((LONG // 8 * 9 // 8 + 1,), FLOAT)) != before
    assert recycling.empty((LONG // 8 - 1,), FLOAT).flags.owndata
    assert recycling.empty((), FLOAT).shape == ()
    assert recycling.empty((0, 3), FLOAT).shape == (0, 3)


def test_batches_of_similar_lengths_share_blocks() -> None:
    places = set()
    for nbytes in range(LONG, 2 * LONG, 1000):
        x = recycling.empty((nbytes,), np.dtype('u1'))
        x[...] = 1
        assert x.size == nbytes
        places.add(address(x))
        del x
    assert len(places) <= 9
    assert all(len(blocks) == 1 for blocks in recycling._blocks.values())
    assert sum(recycling._blocks) < 9 * 2 * LONG


def test_all_lie_as_those_of_malloc_do() -> None:
    assert {address(recycling.empty((LONG + k,), FLOAT)) % 4096 for k in range(3)} == {16}


def kept() -> int:
    return sum(length * len(blocks) for length, blocks in recycling._blocks.items())


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, 'KEPT_BYTES', 3 * LONG)
    for k in range(20):
        recycling.empty((LONG // 8 * (8 + k) // 8,), FLOAT)
        assert 0 < kept() <= 3 * LONG


def test_without_mappings_there_is_memory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(length: int) -> None:
        raise OSError(12, 'Cannot allocate memory')

    monkeypatch.setattr(recycling, '_mapped', no_more)
    x = recycling.empty((LONG,), FLOAT)
    x[...] = 7
    assert x.sum() == 7 * LONG
    assert not recycling._blocks


def test_what_is_in_use_may_go_from_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, 'KEPT_BYTES', 3 * LONG)
    xs = [recycling.empty((LONG // 8,), FLOAT) for _ in range(5)]
    for k, x in enumerate(xs):
        x[...] = k
    assert [x[0] for x in xs] == [x[-1] for x in xs] == [0, 1, 2, 3, 4]
    assert len({address(x) for x in xs}) == 5
    assert kept() <= 3 * LONG


def test_what_is_longer_than_the_pool_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, 'KEPT_BYTES', LONG)
    assert recycling.empty((LONG + 1,), np.dtype('u1')).flags.owndata
    assert not recycling._blocks


def test_threads_never_share() -> None:
    wrong = []

    def use(value: int) -> None:
        for _ in range(200):
            x = recycling.empty((LONG // 8,), FLOAT)
            x[::512] = value
            if (x[::512] != value).any():
                wrong.append(value)

    threads = [threading.Thread(target=use, args=[k]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tracer_does_not_make_the_count_wrong() -> None:
    """Debuggers and tools that measure coverage hold the variables of what they trace.

    Up to Python 3.12; from 3.13 on they look at them without holding them.
    """
    program = """
import sys
def trace(frame, *_):
    if frame.f_code.co_name == '_references_of_nobody':
        frame.f_locals
        return trace
sys.settrace(trace)
from mnx import recycling
sys.settrace(None)
import numpy as np
xs = [recycling.empty((recycling.FROM_BYTES,), np.dtype('u1')) for _ in range(3)]
assert len({x.ctypes.data for x in xs}) == 3, 'two arrays in one place'
"""
    subprocess.run([sys.executable, '-c', program], check=True, timeout=60)
