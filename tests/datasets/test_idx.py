import gzip

import numpy as np
import pytest

from mnx.datasets.idx import dump_idx, parse_idx, read_idx
from mnx.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
# written by hand from the format's description
BYTES = bytes.fromhex('00000803 00000002 00000003 00000004') + bytes(range(24))


def test_bytes_of_the_format():
    assert dump_idx(IMAGES) == BYTES
    np.testing.assert_array_equal(parse_idx(BYTES, 'here'), IMAGES)


@pytest.mark.parametrize(
    ('code', 'dtype'),
    [('08', 'u1'), ('09', 'i1'), ('0b', '>i2'), ('0c', '>i4'), ('0d', '>f4'), ('0e', '>f8')],
)
def test_all_types_arrive_in_native_byte_order(code, dtype):
    values = np.array([1, 2, 100], dtype)
    found = parse_idx(bytes.fromhex(f'0000{code}01 00000003') + values.tobytes(), 'here')
    assert found.tolist() == [1, 2, 100]
    assert found.dtype == np.dtype(dtype).newbyteorder('=')
    assert found.dtype.isnative


@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_read_packed_or_not_whatever_its_name(tmp_path, pack):
    path = tmp_path / 'images'
    path.write_bytes(pack(BYTES))
    np.testing.assert_array_equal(read_idx(path), IMAGES)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'no idx file.*an empty file'),
        (b'<html>not found', 'no idx file.*3c68746d'),
        (bytes.fromhex('00000a01 00000001 00'), 'no idx file'),
        (BYTES[:9], 'cut short, expected 16 bytes of header but got 9'),
        (BYTES[:-1], 'cut short, expected 40 bytes.*but got 39'),
        (BYTES + b'x', 'has a tail, expected 40 bytes.*but got 41'),
        (gzip.compress(BYTES, mtime=0)[:-9], 'cut short or damaged'),
        (gzip.compress(BYTES, mtime=0)[:5], 'cut short or damaged'),
        (gzip.compress(BYTES, mtime=0)[:-8] + bytes(8), 'cut short or damaged'),
    ],
)
def test_damage_is_named(tmp_path, data, message):
    path = tmp_path / 'images'
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
