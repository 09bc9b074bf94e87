from tests.benchmarks.running import rows_of


def test_every_size_and_candidate_has_a_row(tmp_path):
    rows = rows_of(2, 'point_to_point', tmp_path, '--bytes', '4,128Ki')
    assert [(row['bytes'], row['candidate']) for row in rows] == [
        (nbytes, name) for nbytes in (4, 128 * 1024) for name in ('raw', 'mnx', 'pickled')
    ]
