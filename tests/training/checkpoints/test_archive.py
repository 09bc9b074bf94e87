import hashlib
import zipfile

import numpy as np
import pytest

from mnx.errors import DataError, DtypeError
from mnx.training.checkpoints import archive


def everything(key):
    return True


@pytest.fixture
def state():
    return {
        'updater/model:main/W': np.arange(6.0).reshape(2, 3).T,
        'scalar': np.asarray(3),
        'text': np.asarray('größer'),
        'nothing': np.asarray(None),
        'empty': np.empty((0, 2), np.float16),
        'file': np.asarray([True]),  # a name that functions of NumPy take themselves
    }


def test_what_is_written_is_read(tmp_path, state):
    facts = archive.write(tmp_path / 'a.npz', state, {'b.npz': ['other']})
    content = (tmp_path / 'a.npz').read_bytes()
    assert facts == (len(content), hashlib.sha256(content).hexdigest())
    archive.verify(tmp_path / 'a.npz', facts)
    found, elsewhere = archive.read(tmp_path / 'a.npz', everything)
    assert elsewhere == {'b.npz': ['other']}
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ['a.npz']


def test_only_what_is_wanted_is_read(tmp_path, state):
    archive.write(tmp_path / 'a.npz', state, {})
    found, _ = archive.read(tmp_path / 'a.npz', {'text', 'nothing', 'no such'}.__contains__)
    assert found.keys() == {'text', 'nothing'}


def test_any_zip_reader_and_numpy_can_read_it(tmp_path, state):
    archive.write(tmp_path / 'a.npz', state, {})
    with zipfile.ZipFile(tmp_path / 'a.npz') as file:
        assert file.testzip() is None
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as file:
        np.testing.assert_array_equal(file['scalar'], 3)


def test_objects_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DtypeError, match='odd is a Python object'):
        archive.write(tmp_path / 'a.npz', {'odd': np.asarray([print])}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('place', range(0, 1000, 37))
def test_every_byte_counts(tmp_path, state, place):
    path = tmp_path / 'a.npz'
    facts = archive.write(path, state, {})
    data = bytearray(path.read_bytes())
    data[len(data) * place // 1000] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match='checksum'):
        archive.verify(path, facts)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / 'a.npz').mkdir()
    size = (tmp_path / 'a.npz').stat().st_size
    with pytest.raises(DataError, match='cannot be read'):
        archive.verify(tmp_path / 'a.npz', archive.FileFacts(size, ''))
