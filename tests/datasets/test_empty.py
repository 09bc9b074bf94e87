import numpy as np
import pytest

from mnx.datasets import create_empty_dataset


@pytest.mark.parametrize('dataset', [[], [1, 2, 3], np.zeros((4, 2)), range(5)])
def test_as_many_empty_examples(dataset):
    assert create_empty_dataset(dataset) == [()] * len(dataset)


def test_ranks_with_unlike_data_each_get_their_own_length(comm):
    assert len(create_empty_dataset(range(comm.rank + 1))) == comm.rank + 1
