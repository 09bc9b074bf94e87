import pytest

from mnx.datasets.partition import owned_length, part_of

CASES = [(n, size) for size in (1, 2, 3, 4, 7) for n in (0, 1, 2, 3, 5, 8, 13, 28, 101)]


def parts(n, size, **options):
    return [part_of(n, rank, size, **options) for rank in range(size)]


@pytest.mark.parametrize(('n', 'size'), CASES)
def test_equal_parts_have_one_length_and_leave_nothing_out(n, size):
    ranges = parts(n, size)
    assert {len(part) for part in ranges} == {-(-n // size)}
    assert sorted(set().union(*ranges)) == list(range(n))


@pytest.mark.parametrize(('n', 'size'), CASES)
def test_unequal_parts_follow_one_another(n, size):
    ranges = parts(n, size, force_equal_length=False)
    assert [i for part in ranges for i in part] == list(range(n))
    lengths = [len(part) for part in ranges]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


@pytest.mark.parametrize('equal', [True, False])
@pytest.mark.parametrize(('n', 'size'), CASES)
def test_each_position_is_owned_once(n, size, equal):
    owned = []
    for rank, part in enumerate(parts(n, size, force_equal_length=equal)):
        owned += part[: owned_length(n, rank, size, force_equal_length=equal)]
    assert owned == list(range(n))


def test_the_picture_in_the_docstring():
    assert [list(part) for part in parts(10, 4)] == [[0, 1, 2], [2, 3, 4], [5, 6, 7], [7, 8, 9]]
    assert [owned_length(10, rank, 4) for rank in range(4)] == [2, 3, 2, 3]
    assert [list(part) for part in parts(10, 4, force_equal_length=False)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7],
        [8, 9],
    ]
