"""Which GPUs does a rank see, and is there NCCL for them?"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from mnx.transports import nccl, pickles
from mnx.transports.base import Transport


@dataclass(frozen=True)
class Devices:
    """What one rank sees.

    Attributes
    ----------
    gpus : tuple of str
        Their names, which tell them apart in the whole job, however the launcher numbers them.
    nccl : int
        NCCL's version as a number, such as 23203; 0 without NCCL.
    problem : str
        Why this rank cannot use NCCL; '' if it can.
    """

    gpus: tuple[str, ...] = ()
    nccl: int = 0
    problem: str = ''


def visible() -> Devices:
    """Return what this process sees. It chooses no device and takes no memory of one."""
    try:
        import cupy
    except ImportError as error:
        return Devices(problem=f'CuPy cannot be imported ({error})')
    runtime = cupy.cuda.runtime
    try:
        places = [runtime.deviceGetPCIBusId(i) for i in range(runtime.getDeviceCount())]
    except RuntimeError as error:  # no driver, or one too old
        return Devices(problem=f'CuPy finds no GPU ({error})')
    if not places:
        return Devices(problem='CuPy finds no GPU')
    gpus = tuple(f'{socket.gethostname()} {place}' for place in places)
    version, problem = nccl.probe()
    return Devices(gpus, version, problem)


def survey(control: Transport) -> list[Devices]:
    """Return what each rank sees. Collective."""
    return pickles.all_gather(control, visible())
