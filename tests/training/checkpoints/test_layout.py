import numpy as np
import pytest

from mnx.training.checkpoints.layout import difference, disputed, holders


@pytest.mark.parametrize('folders', [[0, 0, 0, 0], [0, 0, 2, 2], [0, 1, 2, 3], [0, 1, 0, 1]])
def test_each_value_is_found_once_in_each_folder(folders):
    """Two halves of a model on two ranks each, and something of each rank's own."""
    tables = [
        {'common': b'c', f'half_{rank % 2}': b'h', 'data': bytes([rank]), 'same': b's'}
        for rank in range(4)
    ]
    tables[3].pop('same')
    differences = [difference(tables[0], table) for table in tables]
    assert disputed(differences) == ['data', 'half_0', 'half_1', 'same']
    written = set()
    for rank, table in enumerate(tables):
        found = holders(tables[0], differences, folders, rank)
        assert found.keys() == table.keys()
        for key, holder in found.items():
            assert holder <= rank
            assert folders[holder] == folders[rank]
            assert tables[holder][key] == table[key]
            written.add((folders[rank], key, table[key], holder))
    assert len({item[:3] for item in written}) == len(written)


def test_ranks_without_differences():
    table = {str(i): bytes([i]) for i in np.arange(5)}
    assert difference(table, dict(table)) == {}
    assert holders(table, [{}, {}], [0, 0], 1) == dict.fromkeys(table, 0)
