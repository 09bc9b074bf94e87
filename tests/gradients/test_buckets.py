"""Which gradients travel together: a pure function."""

from __future__ import annotations

import numpy as np
import pytest

from mnx.gradients.buckets import fill


@pytest.mark.parametrize('seed', range(20))
def test_every_gradient_once_in_order_and_no_bucket_too_full(seed: int) -> None:
    rng = np.random.RandomState(seed)
    sizes = rng.randint(0, 50, 30).tolist()
    kinds = [('f4', 'f8')[i] for i in rng.randint(0, 2, 30)]
    cap = int(rng.randint(1, 120))
    buckets = fill(sizes, kinds, cap)
    assert [i for bucket in buckets for i in bucket] == list(range(30))
    for bucket, after in zip(buckets, [*buckets[1:], None], strict=True):
        total = sum(sizes[i] for i in bucket)
        assert len({kinds[i] for i in bucket}) == 1
        assert total <= cap or len(bucket) == 1 or sizes[bucket[0]] == total
        if after is not None and kinds[after[0]] == kinds[bucket[0]]:
            assert total + sizes[after[0]] > cap  # it would not have fitted


def test_none() -> None:
    assert fill([], [], 10) == []
