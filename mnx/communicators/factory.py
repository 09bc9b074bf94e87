"""`create_communicator`: from a name to a communicator."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from mnx.communicators.base import Communicator, float_dtype
from mnx.communicators.choice import choose
from mnx.communicators.dummy import DummyCommunicator
from mnx.communicators.endpoint import Config
from mnx.communicators.flat import FlatCommunicator
from mnx.communicators.hierarchical import HierarchicalCommunicator
from mnx.communicators.local import LocalCommunicator
from mnx.communicators.naive import NaiveCommunicator
from mnx.communicators.nccl import NcclCommunicator
from mnx.communicators.non_cuda_aware import NonCudaAwareCommunicator
from mnx.communicators.shared_memory import SharedMemoryCommunicator
from mnx.communicators.two_dimensional import TwoDimensionalCommunicator
from mnx.errors import ArgumentError, MissingPackageError
from mnx.health import farewell, start_limit, watchdog
from mnx.health.meeting import Meetings, checks_wanted
from mnx.topology import Topology
from mnx.transports import devices, gpu_aware, launch
from mnx.transports.base import Channels, Transport
from mnx.transports.devices import Devices
from mnx.transports.host_staged import HostStagedTransport
from mnx.transports.layer import LayeredChannels
from mnx.transports.local import LocalChannels
from mnx.transports.nccl import NcclTransport

COMMUNICATORS: dict[str, type[Communicator]] = {
    cls.name: cls
    for cls in (
        NaiveCommunicator,
        FlatCommunicator,
        HierarchicalCommunicator,
        TwoDimensionalCommunicator,
        SharedMemoryCommunicator,
        NcclCommunicator,
        NonCudaAwareCommunicator,
        DummyCommunicator,
        LocalCommunicator,
    )
}

ALIASES = {'single_node': 'shared_memory', 'pure_nccl': 'nccl'}  # ChainerMN's names

NAMES = ('auto', *COMMUNICATORS, *ALIASES)

_said_alone = False


def create_communicator(
    communicator_name: str = 'auto',
    mpi_comm: Any = None,
    *,
    allreduce_grad_dtype: Any = None,
    batched_copy: bool = True,
) -> Communicator:
    """Create the communicator that joins the processes of this job.

    Collective: all ranks of `mpi_comm` call it. Without an MPI launcher the process is alone,
    needs no MPI, and says so once.

    Parameters
    ----------
    communicator_name : str
        'auto' (the fastest one for the place: ``comm.describe()`` says which), 'naive', 'flat',
        'shared_memory' (alias 'single_node'), 'hierarchical', 'two_dimensional', 'nccl' (alias
        'pure_nccl'), 'non_cuda_aware', 'dummy' (packs gradients, sends none), or 'local' (this
        process alone).
    mpi_comm : mpi4py.MPI.Comm, optional
        The ranks to join; default: all of the job. It is duplicated, never used for messages.
    allreduce_grad_dtype : dtype, optional
        Exchange gradients in this floating-point dtype (complex ones in the complex dtype of that
        precision); default: their own. One of 16 bits is for the wire between nodes: inside a
        node nothing is gained, so nothing is rounded.
    batched_copy : bool
        On GPUs, pack all gradients by one kernel.

    Returns
    -------
    Communicator

    Raises
    ------
    ArgumentError
        An unknown name, a dtype that is not floating-point, or a bad ``MNX_TIMEOUT``.
    LaunchError
        A launcher started several processes, but MPI does not join them.
    MissingPackageError
        'nccl' or 'non_cuda_aware', and some rank has no CuPy, GPU or NCCL (on all ranks).

    Examples
    --------
    >>> import mnx
    >>> with mnx.create_communicator('local') as comm:
    ...     print(comm.rank, comm.size)
    0 1
    """
    channels = start_limit.limited(lambda: _channels(communicator_name, mpi_comm))
    with Meetings(channels.control)('create_communicator') as meeting:
        if communicator_name not in NAMES:
            raise ArgumentError(
                f'Unrecognized communicator: "{communicator_name}". '
                f'Choose one of {", ".join(NAMES)}.'
            )
        config = Config(float_dtype(allreduce_grad_dtype), bool(batched_copy))
        meeting.bring(communicator_name, config, f'MNX_CHECK={int(checks_wanted())}')
        timeout = watchdog.timeout_of()
    watchdog.start(channels, timeout)
    comm = build(communicator_name, channels, config)
    farewell.owe(comm.meetings)
    return comm


def build(name: str, channels: Channels, config: Config | None = None) -> Communicator:
    """Return the communicator of this name over `channels`. Collective."""
    seen = devices.survey(channels.control)
    topology = Topology.of_hosts(channels.hosts)
    reason = 'asked for by name'
    if name == 'auto':
        choice = choose(topology, seen)
        name, reason = choice.name, f"'auto': {choice.reason}"
    cls = COMMUNICATORS[ALIASES.get(name, name)]
    if cls.needs_nccl:
        _check_nccl(cls.name, seen)
    if isinstance(channels, LocalChannels):
        return LocalCommunicator(channels, config)
    made = cls(_with_gpus(cls, channels, topology, seen), config)
    made.reason = reason
    return made


def _check_nccl(name: str, seen: Sequence[Devices]) -> None:
    """Raise on every rank, since all have seen the same."""
    problems = {rank: d.problem for rank, d in enumerate(seen) if d.problem}
    if problems:
        rank, problem = next(iter(problems.items()))
        raise MissingPackageError(
            f'{name}: needs a GPU, CuPy and NCCL on every rank, but on rank {rank} of {len(seen)} '
            f'{problem}. Install mnx[cuda12] or mnx[cuda13], whichever fits the driver, or use '
            "'auto' on CPUs."
        )


def _with_gpus(
    cls: type[Communicator], channels: Channels, topology: Topology, seen: Sequence[Devices]
) -> Channels:
    """Put on top of MPI what carries arrays on GPUs, if there are any. Collective."""
    if not any(d.gpus for d in seen):
        return channels
    if cls.carries_by_nccl:
        return LayeredChannels(channels, _nccl_over_host)
    rank = channels.control.rank
    if cls.needs_nccl or not gpu_aware.agreed(
        channels.control, bool(seen[rank].gpus), topology.intra_rank(rank) == 0
    ):
        return LayeredChannels(channels, HostStagedTransport)
    return channels


def _nccl_over_host(below: Transport) -> Transport:
    return NcclTransport(HostStagedTransport(below))


def _channels(name: str, mpi_comm: Any) -> Channels:
    """Decide what joins the processes: MPI, or nothing because there is one."""
    if name == 'local':
        return LocalChannels()
    launched = launch.detect(os.environ)
    if mpi_comm is None and launched is None and 'mpi4py.MPI' not in sys.modules:
        _say_alone()
        return LocalChannels()
    return _mpi_channels(launched, mpi_comm)


def _mpi_channels(launched: launch.Launch | None, mpi_comm: Any) -> Channels:
    from mnx.transports import mpi

    _check_comm(mpi_comm)
    if 'mpi4py.MPI' not in sys.modules:
        launch.check_place(os.environ)
    try:
        size, _ = mpi.world()
    except (ImportError, RuntimeError) as error:
        launch.check_launch(launched, None, str(error))
        _say_alone()
        return LocalChannels()
    launch.check_launch(launched, size, mpi.library_name())
    return mpi.MpiChannels(mpi_comm)


def _check_comm(mpi_comm: Any) -> None:
    """Raise where others would wait: not a communicator, or one of two groups."""
    is_comm = callable(getattr(mpi_comm, 'Is_inter', None))
    if mpi_comm is not None and (not is_comm or not mpi_comm or mpi_comm.Is_inter()):
        raise ArgumentError(
            'create_communicator: mpi_comm must be an intracommunicator of mpi4py, '
            f'but got {mpi_comm!r}. For a part of an mnx communicator, use its split or group.'
        )


def _say_alone() -> None:
    global _said_alone
    if not _said_alone:
        _said_alone = True
        print(
            'mnx: one process (no MPI launcher). For more, start the script by '
            '`mpiexec -n 4 python ...`.',
            file=sys.stderr,
        )
