"""Chainer's iterators that work beside the training: processes and threads."""

from __future__ import annotations

import sys

import chainer
import numpy as np
import pytest

from tests.chainer_compat.interpreters import run
from tests.launching import starts_jobs

SCRIPT = """
import multiprocessing, sys
import numpy as np

class Squares:
    def __len__(self):
        return 10
    def __getitem__(self, i):
        return np.full(3, i * i, dtype=np.float32)

if __name__ == '__main__':
    multiprocessing.set_start_method(sys.argv[1])
    import chainer
    options = dict(n_processes=2, n_prefetch=2, shuffle=False)
    if sys.argv[2] == 'shared':
        options['shared_mem'] = 1000
    iterator = chainer.iterators.MultiprocessIterator(Squares(), 4, repeat=False, **options)
    batches = [[int(x[0]) for x in batch] for batch in iterator]
    assert batches == [[0, 1, 4, 9], [16, 25, 36, 49], [64, 81]], batches
    iterator.reset()
    assert int(next(iterator)[1][0]) == 1
    iterator.finalize()
"""


@starts_jobs
@pytest.mark.parametrize('memory', ['shared', 'measured'])
@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_multiprocess_iterator(method, memory, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    # Python 3.12 warns of any fork beside a thread: that is what "fork" means here.
    ignored = [] if sys.version_info < (3, 12) else ['-W', 'ignore:This process:DeprecationWarning']
    run('-W', 'error', *ignored, script, method, memory, cwd=tmp_path)


def test_multithread_iterator():
    data = np.arange(10, dtype=np.float32)
    iterator = chainer.iterators.MultithreadIterator(data, 4, repeat=False, shuffle=False)
    assert [[int(x) for x in batch] for batch in iterator] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    iterator.finalize()


def test_examples_of_different_length_are_padded():
    batch = [(np.arange(n, dtype=np.float32), np.int32(n)) for n in (3, 1)]
    x, n = chainer.dataset.concat_examples(batch, padding=(-1, None))
    np.testing.assert_array_equal(x, [[0, 1, 2], [0, -1, -1]])
    np.testing.assert_array_equal(n, [3, 1])
