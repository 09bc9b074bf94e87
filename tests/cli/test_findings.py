"""What `mnx check` makes of places of ranks that no machine here has."""

from __future__ import annotations

from mnx.cli.findings import NOTE, OK, Place, of_cores, of_gpus, of_launch, of_threads, threads_of

CORES = frozenset(range(4))


def test_cores_of_ranks_bound_to_different_ones_count_together():
    bound = [Place(0, frozenset({core})) for core in range(4)]
    assert of_cores(bound).verdict == OK
    assert of_cores([*bound, bound[0]]).verdict == NOTE


def test_each_node_has_its_own_cores():
    assert of_cores([Place(rank // 4, CORES) for rank in range(8)]).verdict == OK
    crowded = of_cores([Place(0, CORES), *[Place(1, CORES)] * 5])
    assert crowded.verdict == NOTE
    assert '5 ranks share 4 cores' in crowded.text
    assert 'at most 4' in crowded.advice


def test_threads_that_nobody_limits_are_as_many_as_cores():
    finding = of_threads([Place(0, CORES)] * 2)
    assert finding.verdict == NOTE
    assert '8 threads of 2 ranks on 4 cores' in finding.text
    assert 'OMP_NUM_THREADS=2 ' in finding.advice
    assert of_threads([Place(0, CORES, threads=2)] * 2).verdict == OK


def test_one_thread_for_each_rank_is_the_business_of_cores():
    assert of_threads([Place(0, CORES, threads=1)] * 8).verdict == OK


def test_a_rank_bound_to_one_core_has_one_thread():
    assert of_threads([Place(0, frozenset({core})) for core in range(4)]).verdict == OK


def test_threads_of_the_environment():
    assert threads_of({'OMP_NUM_THREADS': '4', 'OPENBLAS_NUM_THREADS': '2'}) == 2
    assert threads_of({'OMP_NUM_THREADS': '4,2'}) is None  # a list for nested regions
    assert threads_of({}) is None


def test_a_driver_without_cupy():
    finding = of_gpus([Place(0, CORES, problem='CuPy cannot be imported', has_driver=True)])
    assert finding.verdict == NOTE
    assert 'mnx[cuda12]' in finding.advice


def test_cupy_without_nccl():
    gpu = Place(0, CORES, gpus=('a 0',))
    lacks = Place(0, CORES, gpus=('a 1',), problem='CuPy does not find NCCL')
    assert 'rank 1' in of_gpus([gpu, lacks]).text


def test_some_ranks_without_a_gpu():
    finding = of_gpus([Place(0, CORES, gpus=('a 0',)), Place(1, CORES)])
    assert (finding.verdict, 'rank 1 sees none' in finding.text) == (NOTE, True)


def test_no_gpu_anywhere_is_well():
    assert of_gpus([Place(0, CORES, problem='CuPy cannot be imported')]).verdict == OK


def test_launchers():
    assert of_launch('srun', 4, 4).verdict == OK
    assert of_launch('srun', 4, 2).verdict == NOTE
    assert 'mpiexec' in of_launch(None, 1, 1).advice
