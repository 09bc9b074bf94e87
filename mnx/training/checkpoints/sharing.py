"""Which ranks see the same folder: asked of the file system, since paths do not tell."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase

PROBE = '.probe-'


def folder_owners(comm: CommunicatorBase, folder: Path) -> list[int]:
    """Return for each rank the first rank that sees the same folder.

    Collective: all ranks call it. Each makes the folder, if need be, and a file in it, and looks
    for those of the others. The names are new ones, which no network file system remembers to be
    missing.
    """
    token = comm.bcast_obj(secrets.token_hex(8))  # not from a generator that the training uses
    probes = [folder / f'{PROBE}{token}-{rank}' for rank in range(comm.size)]
    try:
        with comm.together('checkpoint'):
            folder.mkdir(parents=True, exist_ok=True)
            probes[comm.rank].touch()
        with comm.together('checkpoint'):
            first = next(rank for rank, probe in enumerate(probes) if probe.exists())
        return comm.allgather_obj(first)
    finally:
        probes[comm.rank].unlink(missing_ok=True)
