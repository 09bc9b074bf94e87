import chainer.datasets as D
import numpy as np
import pytest

from mnx.datasets import DatasetPart
from mnx.datasets.part import owned_mask, parts_below

ORDER = np.array([4, 0, 3, 1, 2])


def part(n=5, n_owned=3):
    return DatasetPart(np.arange(n), range(10, 10 + n), n_owned)


class Wrapped(D.TransformDataset):
    """A wrapper of the user's own."""

    def __init__(self, dataset):
        self.inner = dataset

    def __len__(self):
        return len(self.inner)

    def get_example(self, i):
        return self.inner[i]


def twice(x):
    return 2 * x


@pytest.mark.parametrize(
    ('dataset', 'expected'),
    [
        (part(), [1, 1, 1, 0, 0]),
        (D.TransformDataset(part(), twice), [1, 1, 1, 0, 0]),
        (D.TransformDataset(D.TransformDataset(part(), twice), twice), [1, 1, 1, 0, 0]),
        (D.TupleDataset(part(), list(range(5))), [1, 1, 1, 0, 0]),
        (D.DictDataset(x=part(n_owned=4), y=part()), [1, 1, 1, 0, 0]),
        (D.SubDataset(part(), 1, 5), [1, 1, 0, 0]),
        (D.SubDataset(part(), 0, 4, ORDER), [0, 1, 0, 1]),
        (D.ConcatenatedDataset(part(), [7, 8], part(2, 1)), [1, 1, 1, 0, 0, 1, 1, 1, 0]),
        (Wrapped(part()), [1, 1, 1, 0, 0]),
    ],
)
def test_ownership_is_seen_through_wrappers(dataset, expected):
    assert owned_mask(dataset).tolist() == [bool(x) for x in expected]


@pytest.mark.parametrize(
    'dataset',
    [
        part(n_owned=5),
        part(0, 0),
        D.TransformDataset(part(n_owned=5), twice),
        D.ConcatenatedDataset(part(n_owned=5), [1]),
        D.SubDataset(part(n_owned=5), 0, 3),
        np.arange(5),
        [part()],
        [1, 2],
        object(),
    ],
)
def test_nothing_to_leave_out(dataset):
    assert owned_mask(dataset) is None


def test_a_part_is_a_sub_dataset():
    assert isinstance(part(), D.SubDataset)
    assert part()[1:4] == [1, 2, 3]
    assert part()[-1] == 4
    with pytest.raises(IndexError):
        part()[5]


class TestBorrowing:
    """Examples of other parts, behind one's own."""

    def test_they_do_not_count(self):
        mine = part(4, 4)
        mine.borrow(np.array([30, 31]), ['a', 'b'])
        assert len(mine) == 4
        assert [mine[i] for i in range(6)] == [0, 1, 2, 3, 'a', 'b']
        assert mine[:] == [0, 1, 2, 3]
        assert mine[-1] == 3
        with pytest.raises(IndexError):
            mine[6]

    def test_lending(self):
        assert list(part(4, 4).lend(np.array([11, 13]))) == [1, 3]

    def test_parts_below_wrappers(self):
        mine, other = part(4, 4), part(4, 3)
        wrapped = D.TransformDataset(D.TupleDataset(mine, other), lambda x: x)
        assert parts_below(wrapped) == [mine, other]
        assert parts_below(D.DictDataset(a=mine, b=np.arange(4))) == [mine]
        for other_numbers in (
            D.SubDataset(mine, 0, 2),
            D.ConcatenatedDataset(mine, mine),
            np.arange(3),
            [1],
            None,
        ):
            assert parts_below(other_numbers) == []
