from tests.benchmarks.running import rows_of


def test_a_step_and_a_sum_with_and_without(tmp_path):
    rows = rows_of(2, 'fingerprint', tmp_path, '--units', '10', '--batch', '5')
    assert [(row['call'], row['candidate']) for row in rows] == [
        (call, name) for call in ('step', 'allreduce') for name in ('unchecked', 'checked')
    ]
