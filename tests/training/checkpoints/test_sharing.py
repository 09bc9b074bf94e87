import pytest

from mnx.training.checkpoints.sharing import folder_owners


@pytest.mark.parametrize('n_folders', [1, 2, 4])
def test_who_sees_the_same_folder(comm, shared_path, n_folders):
    group = comm.rank % n_folders
    expected = [rank % n_folders for rank in range(comm.size)]
    assert folder_owners(comm, shared_path / str(group) / 'new') == expected
    comm.barrier()
    assert list((shared_path / str(group) / 'new').iterdir()) == []


def test_other_names_of_one_folder(comm, shared_path):
    if comm.rank == 0:
        (shared_path / 'a').mkdir()
        for rank in range(comm.size):
            (shared_path / f'to_a_{rank}').symlink_to('a')
    comm.barrier()
    assert folder_owners(comm, shared_path / f'to_a_{comm.rank}') == [0] * comm.size
