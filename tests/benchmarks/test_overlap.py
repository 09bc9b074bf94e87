from tests.benchmarks.running import BENCHMARKS, rows_of
from tests.launching import mpiexec

QUICK = ('--units', 40, '--layers', 3, '--batch', 8, '--bucket', '4Ki')


def test_every_way_has_a_row(tmp_path):
    rows = rows_of(2, 'overlap', tmp_path, *QUICK)
    ways = ['alone', 'after', 'injected', 'injected late', 'double buffering']
    assert [row['candidate'] for row in rows] == ways
    assert {row['bytes'] for row in rows} == {3 * 41 * 40 * 4}
    assert rows[0]['ratio'] == 1


def test_wrong_parameters_end_it():
    text = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = ['overlap.py', *{[*map(str, QUICK)]!r}, '--repeats', '1']
import overlap
from mnx.gradients.overlap import OverlappedExchange
OverlappedExchange.finish = lambda self, totals: list(totals)
overlap.main()
"""
    job = mpiexec(2, text)
    assert job.returncode != 0
    assert 'injected ends with other parameters' in job.stdout
