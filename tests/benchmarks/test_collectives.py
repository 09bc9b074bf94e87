from tests.benchmarks.running import rows_of

CALLS = (
    'allreduce',
    'reduce',
    'reduce_scatter',
    'bcast',
    'gather',
    'allgather',
    'scatter',
    'alltoall',
)


def test_every_collective_and_candidate_has_a_row(tmp_path):
    rows = rows_of(3, 'collectives', tmp_path, '--bytes', '4,1Mi')
    full = [(row['call'], row['bytes'], row['candidate']) for row in rows if row['bytes']]
    assert full == [
        (call, nbytes, name)
        for call in CALLS
        for nbytes in (4, 2**20)
        for name in ('raw', 'mnx', 'unchecked')
    ]
    empty = [(row['call'], row['candidate']) for row in rows if not row['bytes']]
    barriers = [('barrier', name) for name in ('raw', 'mnx', 'unchecked')]
    assert empty == [*barriers, ('meeting', 'raw'), ('meeting', 'mnx')]
