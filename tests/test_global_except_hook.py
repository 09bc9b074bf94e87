from pathlib import Path

import mnx
from mnx import global_except_hook
from tests.launching import mpiexec, starts_jobs

PROGRAM = """
import mnx
mnx.global_except_hook.add_hook()
mnx.global_except_hook.add_hook()
comm = mnx.create_communicator('naive')
if comm.rank == 1:
    raise KeyError('on one rank only')
comm.allreduce_obj(1)
"""


@starts_jobs
def test_a_script_that_asks_for_it_ends_with_one_report(tmp_path: Path) -> None:
    job = mpiexec(2, PROGRAM, tmp_path)
    assert job.returncode != 0
    assert job.stdout.count("KeyError: 'on one rank only'") == 1


def test_the_names_of_chainermn() -> None:
    assert mnx.global_except_hook is global_except_hook
