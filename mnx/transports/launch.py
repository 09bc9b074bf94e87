"""Was this process started by an MPI launcher, and does MPI agree with it?

Launchers tell a process its place by environment variables, before MPI is loaded. Comparing them
with what MPI says afterwards finds the commonest fault of an installation: mpiexec and mpi4py of
different MPIs, where every process believes that it is rank 0 of 1.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mnx.errors import LaunchError

# Slurm gives these step numbers to the shell of a batch script, of salloc and of an external
# daemon: there SLURM_* is set although no srun started the process.
_SLURM_SHELL_STEPS = frozenset(str(2**32 - k) for k in range(3, 7)) | {'batch', 'interactive'}


@dataclass(frozen=True)
class Launch:
    """What a launcher's environment says of this process.

    Attributes
    ----------
    launcher : str
        Its name, for messages.
    size, rank : int
        Number of processes started together, and this one's number.
    local_rank : int or None
        Number among the processes of this host, where the launcher tells it.
    """

    launcher: str
    size: int
    rank: int
    local_rank: int | None = None


@dataclass(frozen=True)
class _Variables:
    """The environment variables of one launcher: alternatives from left to right."""

    launcher: str
    size: str
    rank: str
    local_rank: str

    def read(self, environ: Mapping[str, str]) -> Launch | None:
        size, rank = _number(environ, self.size), _number(environ, self.rank)
        if size is None or rank is None or not 0 <= rank < size:
            return None
        return Launch(self.launcher, size, rank, _number(environ, self.local_rank))


# The order decides where one launcher starts another: under Slurm, mpiexec starts its helpers by
# srun, so Slurm comes last; Intel's mpiexec is a Hydra too, so its own mark comes before Hydra's.
_OPEN_MPI = _Variables(
    'Open MPI', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'
)
_MVAPICH = _Variables(
    'MVAPICH', 'MV2_COMM_WORLD_SIZE', 'MV2_COMM_WORLD_RANK', 'MV2_COMM_WORLD_LOCAL_RANK'
)
_HYDRA = _Variables('MPICH (Hydra)', 'PMI_SIZE', 'PMI_RANK', 'MPI_LOCALRANKID')
_INTEL = _Variables('Intel MPI', 'PMI_SIZE', 'PMI_RANK', 'MPI_LOCALRANKID')
_SRUN_PMI = _Variables('srun', 'PMI_SIZE', 'PMI_RANK', 'SLURM_LOCALID')
_SRUN = _Variables('srun', 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
HYDRAS = ('MPICH (Hydra)', 'Intel MPI')  # srun's PMI_FD may speak PMI-2
_FLUX = _Variables('Flux', 'FLUX_JOB_SIZE', 'FLUX_TASK_RANK', 'FLUX_TASK_LOCAL_ID')


def detect(environ: Mapping[str, str]) -> Launch | None:
    """Return what the launcher says of this process; None if no launcher started it.

    A launcher that speaks PMIx alone tells each process its rank but not how many there are; the
    number then comes from Slurm's variables, or stays unknown (None).
    """
    for variables in _candidates(environ):
        launch = variables.read(environ)
        if launch is not None:
            return launch
    return None


def _candidates(environ: Mapping[str, str]) -> Iterator[_Variables]:
    yield _OPEN_MPI
    yield _MVAPICH
    if any(name.startswith('I_MPI_HYDRA') for name in environ) or 'I_MPI_MPIRUN' in environ:
        yield _INTEL
    if 'HYDI_CONTROL_FD' not in environ and _is_srun_step(environ):
        yield _SRUN_PMI
    yield _HYDRA
    yield _FLUX
    if _is_srun_step(environ):
        yield _SRUN


def _is_srun_step(environ: Mapping[str, str]) -> bool:
    step = environ.get('SLURM_STEP_ID', environ.get('SLURM_STEPID'))
    return step is not None and step not in _SLURM_SHELL_STEPS


def _number(environ: Mapping[str, str], name: str) -> int | None:
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        return None


def pmi_socket(environ: Mapping[str, str]) -> int | None:
    """Return the file number of the socket by which Hydra speaks PMI-1; None if there is none."""
    try:
        number = int(environ['PMI_FD'])
        # Where the socket was closed, its number may be another file's; Python's own are not
        # inheritable (PEP 446), what came from the launcher is.
        is_it = stat.S_ISSOCK(os.fstat(number).st_mode) and os.get_inheritable(number)
    except (KeyError, ValueError, OSError):
        return None
    return number if is_it else None


def check_place(environ: Mapping[str, str]) -> None:
    """Raise in a program that a rank has started, before MPI starts there, which would end it.

    It inherits the rank's variables but, unless by os.system, not the socket.

    Raises
    ------
    LaunchError
    """
    launch = detect(environ)
    if launch is None or launch.launcher not in HYDRAS or 'PMI_FD' not in environ:
        return
    if pmi_socket(environ) is None:
        raise LaunchError(
            f'create_communicator: rank {launch.rank} of {launch.size} started this program, not '
            f'{launch.launcher}, so it has no place in the job. {_ALONE} Or leave PMI_FD, PMI_RANK '
            'and PMI_SIZE out of its environment.'
        )


def foreign_library(launch: Launch | None, library: str) -> str | None:
    """Return what to tell the user before MPI starts, if launcher and library seem unrelated.

    Some libraries end the process when they meet a foreign launcher (MPICH under Open MPI's
    mpiexec), too early for any exception. It is a notice, not an error, since an MPI can be built
    to understand other launchers. One process of each host tells. The library's name may be asked
    before MPI is initialised.
    """
    if launch is None or launch.size == 1 or launch.local_rank:
        return None
    family = 'Open MPI' if 'Open MPI' in library else 'MPICH'
    if launch.launcher not in _FOREIGN_LAUNCHERS[family]:
        return None
    return (
        f'mnx: {launch.launcher} started {launch.size} processes, but mpi4py loaded another MPI: '
        f'{_one_line(library)}. If MPI cannot start now, this is why. {_remedy(launch.launcher)}'
    )


# by the library's family: MPICH, Intel MPI and MVAPICH understand one another's launchers
_FOREIGN_LAUNCHERS = {
    'Open MPI': frozenset({'MPICH (Hydra)', 'Intel MPI', 'MVAPICH'}),
    'MPICH': frozenset({'Open MPI'}),
}


def check_launch(launch: Launch | None, world_size: int | None, library: str) -> None:
    """Raise if the launcher started several processes that MPI does not join.

    Parameters
    ----------
    launch : Launch or None
        What `detect` returned.
    world_size : int or None
        Number of ranks of MPI's world; None if mpi4py is missing or cannot be loaded.
    library : str
        The MPI library that mpi4py loaded, as it names itself; if it loaded none, why not.

    Raises
    ------
    LaunchError
        If several processes were started and each of them is alone. A world of another size
        than the launcher's, but larger than 1, is left to MPI, which knows best (processes
        may be spawned, launchers nested).
    """
    if launch is None or launch.size == 1:
        return
    if world_size is None:
        raise LaunchError(_unusable(launch, library))
    if world_size == 1:
        raise LaunchError(_strangers(launch, library))


def _unusable(launch: Launch, reason: str) -> str:
    return (
        f'create_communicator: {launch.launcher} started {launch.size} processes, but mpi4py '
        f'cannot be used: {_one_line(reason)} (rank {launch.rank} of {launch.size}). Install '
        f'mpi4py and the MPI that this launcher belongs to in this environment. {_ALONE}'
    )


def _strangers(launch: Launch, library: str) -> str:
    return (
        f'create_communicator: the launcher and mpi4py belong to different MPIs, expected '
        f'{launch.size} ranks as {launch.launcher} started but got an MPI world of 1 (rank '
        f'{launch.rank} of {launch.size}). mpi4py loaded: {_one_line(library)}. '
        f'{_remedy(launch.launcher)} {_ALONE}'
    )


_ALONE = (
    "If processes are meant to run apart, each for itself, ask for create_communicator('local')."
)


def _remedy(launcher: str) -> str:
    if launcher == 'srun':
        return (
            "Name the process manager of that library to srun: 'srun --mpi=list' shows what there "
            'is; --mpi=pmix suits Open MPI, --mpi=pmi2 MPICH and Intel MPI.'
        )
    return (
        "Start the job with that library's own mpiexec ('python -m mpi4py --mpi-lib-version' and "
        "'mpiexec --version' must name the same MPI; in a virtual environment it is the mpiexec "
        'beside its python), or install the library that this launcher belongs to.'
    )


def _one_line(text: str) -> str:
    """Return the first words of a library's description, which may go over many lines."""
    line = ' '.join(text.replace('\0', ' ').split())
    return line if len(line) <= 120 else line[:117] + '...'
