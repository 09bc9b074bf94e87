from __future__ import annotations

import pytest

from mnx.errors import LaunchError
from mnx.transports.launch import Launch, check_launch, detect, foreign_library
from tests.launching import mpiexec, starts_jobs

ENVIRONMENTS = {
    'hydra': (
        {'PMI_SIZE': '4', 'PMI_RANK': '3', 'MPI_LOCALNRANKS': '2', 'MPI_LOCALRANKID': '1'},
        Launch('MPICH (Hydra)', 4, 3, 1),
    ),
    'intel': (
        {
            'PMI_SIZE': '2',
            'PMI_RANK': '0',
            'MPI_LOCALRANKID': '0',
            'I_MPI_HYDRA_DEBUG': 'off',
        },
        Launch('Intel MPI', 2, 0, 0),
    ),
    'open_mpi': (
        {
            'OMPI_COMM_WORLD_SIZE': '8',
            'OMPI_COMM_WORLD_RANK': '5',
            'OMPI_COMM_WORLD_LOCAL_RANK': '1',
            'PMIX_RANK': '5',
        },
        Launch('Open MPI', 8, 5, 1),
    ),
    'mvapich': (
        {'MV2_COMM_WORLD_SIZE': '2', 'MV2_COMM_WORLD_RANK': '1'},
        Launch('MVAPICH', 2, 1, None),
    ),
    'srun': (
        {
            'SLURM_JOB_ID': '77',
            'SLURM_STEP_ID': '0',
            'SLURM_STEP_NUM_TASKS': '6',
            'SLURM_PROCID': '5',
            'SLURM_LOCALID': '2',
            'SLURM_NTASKS': '6',
        },
        Launch('srun', 6, 5, 2),
    ),
    'srun_pmi2': (
        {
            'SLURM_STEP_ID': '1',
            'SLURM_STEP_NUM_TASKS': '6',
            'SLURM_PROCID': '5',
            'SLURM_LOCALID': '2',
            'PMI_SIZE': '6',
            'PMI_RANK': '5',
        },
        Launch('srun', 6, 5, 2),
    ),
    # Under Slurm mpiexec starts one helper a node by srun; its ranks are what counts.
    'hydra_in_slurm': (
        {
            'SLURM_STEP_ID': '0',
            'SLURM_STEP_NUM_TASKS': '2',
            'SLURM_PROCID': '1',
            'HYDI_CONTROL_FD': '7',
            'PMI_SIZE': '8',
            'PMI_RANK': '6',
        },
        Launch('MPICH (Hydra)', 8, 6, None),
    ),
    'flux': (
        {'FLUX_JOB_SIZE': '3', 'FLUX_TASK_RANK': '2', 'FLUX_TASK_LOCAL_ID': '0'},
        Launch('Flux', 3, 2, 0),
    ),
}

NOT_LAUNCHED = {
    'nothing': {},
    'salloc': {'SLURM_JOB_ID': '77', 'SLURM_NTASKS': '4', 'SLURM_NNODES': '2'},
    'sbatch': {'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'},
    'batch_step': {
        'SLURM_STEP_ID': '4294967291',
        'SLURM_STEP_NUM_TASKS': '4',
        'SLURM_PROCID': '0',
    },
    'interactive_step': {
        'SLURM_STEP_ID': '4294967290',
        'SLURM_STEP_NUM_TASKS': '4',
        'SLURM_PROCID': '0',
    },
    'nonsense': {'PMI_SIZE': 'four', 'PMI_RANK': '0'},
    'rank_out_of_range': {'PMI_SIZE': '2', 'PMI_RANK': '2'},
    'pmix_without_a_size': {'PMIX_RANK': '1', 'PMIX_NAMESPACE': 'job'},
}


@pytest.mark.parametrize(('environ', 'expected'), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_detects(environ: dict[str, str], expected: Launch) -> None:
    assert detect(environ) == expected


@pytest.mark.parametrize('environ', NOT_LAUNCHED.values(), ids=NOT_LAUNCHED)
def test_detects_nothing(environ: dict[str, str]) -> None:
    assert detect(environ) is None


@pytest.mark.parametrize(
    ('launch', 'world_size'),
    [
        (None, 1),
        (None, None),
        (Launch('Open MPI', 1, 0), 1),
        (Launch('Open MPI', 1, 0), None),
        (Launch('Open MPI', 4, 0), 4),
        (Launch('srun', 2, 0), 8),
    ],
)
def test_accepts(launch: Launch | None, world_size: int | None) -> None:
    check_launch(launch, world_size, 'MPICH')


def test_names_two_different_mpis() -> None:
    with pytest.raises(LaunchError) as caught:
        check_launch(Launch('Open MPI', 4, 2), 1, 'MPICH Version:\t5.0\nMPICH Device: ch4')
    text = str(caught.value)
    assert 'expected 4 ranks as Open MPI started but got an MPI world of 1 (rank 2 of 4)' in text
    assert 'MPICH Version: 5.0 MPICH Device: ch4' in text
    assert 'mpiexec --version' in text


def test_names_the_process_manager_of_srun() -> None:
    with pytest.raises(LaunchError, match='--mpi=pmi2'):
        check_launch(Launch('srun', 4, 0), 1, 'MPICH')


def test_names_a_missing_mpi4py() -> None:
    with pytest.raises(LaunchError, match=r'started 4 processes.*No module named .mpi4py'):
        check_launch(Launch('srun', 4, 0), None, "No module named 'mpi4py'")


def test_long_library_description_is_cut() -> None:
    with pytest.raises(LaunchError) as caught:
        check_launch(Launch('Open MPI', 2, 0), 1, 'Open MPI v5 ' + 'x' * 5000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ('launcher', 'size', 'library', 'is_foreign'),
    [
        ('Open MPI', 2, 'MPICH Version: 5.0', True),
        ('Open MPI', 1, 'MPICH Version: 5.0', False),
        ('Open MPI', 2, 'Open MPI v5.0.11', False),
        ('MPICH (Hydra)', 2, 'Open MPI v5.0.11', True),
        ('MPICH (Hydra)', 2, 'MPICH Version: 5.0', False),
        ('Intel MPI', 2, 'MPICH Version: 5.0', False),
        ('srun', 2, 'Open MPI v5.0.11', False),
    ],
)
def test_foreign_library(launcher: str, size: int, library: str, is_foreign: bool) -> None:
    assert foreign_library(Launch(launcher, size, 1, local_rank=1), library) is None
    text = foreign_library(Launch(launcher, size, 0, local_rank=0), library)
    assert (text is not None) == is_foreign
    assert text is None or library in text


@starts_jobs
def test_agrees_with_this_mpi() -> None:
    result = mpiexec(2, AGREE)
    assert result.returncode == 0, result.stdout
    assert sorted(result.stdout.split()) == ['0/2:0', '1/2:1']


@starts_jobs
def test_a_program_that_a_rank_starts_has_no_place() -> None:
    result = mpiexec(2, OF_A_RANK)
    assert result.returncode == 0, result.stdout


OF_A_RANK = """
import os, subprocess, sys
import mnx
comm = mnx.create_communicator()

def child(name, environ):
    program = f'import mnx; print(mnx.create_communicator({name!r}).size, "alone")'
    return subprocess.run(
        [sys.executable, '-c', program], env=environ, capture_output=True, text=True
    )

if 'PMI_FD' in os.environ:
    done = child('auto', dict(os.environ))
    assert done.returncode == 1, done
    assert f'rank {comm.rank} of 2 started this program' in done.stderr, done
    mine = {k: v for k, v in os.environ.items() if k not in ('PMI_FD', 'PMI_RANK', 'PMI_SIZE')}
    assert child('auto', mine).stdout == '1 alone\\n'
assert child('local', dict(os.environ)).stdout == '1 alone\\n'
comm.barrier()
"""

AGREE = """
import os
from mpi4py import MPI
from mnx.transports.launch import detect
launch = detect(os.environ)
assert (launch.size, launch.rank) == (MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank)
print(f'{launch.rank}/{launch.size}:{launch.local_rank}')
"""
