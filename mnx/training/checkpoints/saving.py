"""Writing one set, step by step; each step is one meeting, so that all ranks fail or none.

capture   what this rank has                                    nothing is on the disk
compare   who writes what, by checksums
write     each its file: temporary name, fsync, rename          a folder without a manifest
tell      sizes and checksums
finish    the manifest, by one rank in each folder              a set
remove    what is older than the newest k
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mnx.training.checkpoints import archive, folder, layout, manifest
from mnx.training.checkpoints.archive import FileFacts
from mnx.training.checkpoints.manifest import Manifest
from mnx.training.snapshot import State, digests
from mnx.training.whole_file import sync_folder

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


def save(
    comm: CommunicatorBase,
    home: Path,
    owners: list[int],
    state: State,
    iteration: int,
    training: str,
) -> str:
    """Write a set; return its name. Collective: all ranks call it.

    Parameters
    ----------
    comm : CommunicatorBase
    home : Path
        This rank's folder of sets.
    owners : list of int
        For each rank the first rank that sees the same folder.
    state : dict
        What this rank has.
    iteration : int
    training : str
        Of which the set is.
    """
    name = _next_name(comm, home, iteration)
    path = home / name
    try:
        _write(comm, path, owners, state, iteration, training)
    except Exception:
        shutil.rmtree(path, ignore_errors=True)  # a full disk shall not stay full of it
        raise
    return name


def _write(
    comm: CommunicatorBase,
    path: Path,
    owners: list[int],
    state: State,
    iteration: int,
    training: str,
) -> None:
    holders, differs = _compare(comm, owners, state)
    facts = None
    with comm.together('checkpoint'):
        path.mkdir(parents=True, exist_ok=True)
        mine, elsewhere = _sorted_out(state, holders, comm.rank)
        facts = archive.write(path / folder.part_name(comm.rank), mine, elsewhere)
    told: list[FileFacts] = comm.allgather_obj(facts)
    files = {folder.part_name(rank): facts for rank, facts in enumerate(told)}
    with comm.together('checkpoint'):
        if owners[comm.rank] == comm.rank:
            manifest.write(path, Manifest(iteration, training, comm.size, differs, files))
            sync_folder(path.parent)


def _next_name(comm: CommunicatorBase, home: Path, iteration: int) -> str:
    with comm.together('checkpoint') as meeting:
        meeting.bring(f'iteration={iteration}')
        numbers = [folder.number_of(name) for name in folder.names_in(home)]
    newest: int = max(comm.allgather_obj(max(numbers, default=0)))
    return folder.name_of(newest + 1, iteration)


def _compare(
    comm: CommunicatorBase, owners: list[int], state: State
) -> tuple[dict[str, int], list[str]]:
    """Return in whose file each value is, and the names of those that differ between ranks."""
    with comm.together('checkpoint'):
        mine = digests(state)
    roots = comm.bcast_obj(mine)
    differences = comm.allgather_obj(layout.difference(roots, mine))
    return layout.holders(roots, differences, owners, comm.rank), layout.disputed(differences)


def _sorted_out(
    state: State, holders: dict[str, int], rank: int
) -> tuple[State, dict[str, list[str]]]:
    """Return what this rank writes, and in which files its other values are."""
    elsewhere: dict[str, list[str]] = {}
    for key, holder in holders.items():
        if holder != rank:
            elsewhere.setdefault(folder.part_name(holder), []).append(key)
    return {key: state[key] for key, holder in holders.items() if holder == rank}, elsewhere


def remove_old(
    comm: CommunicatorBase, home: Path, owners: list[int], keep: int, others: frozenset[str]
) -> None:
    """Remove all but the newest sets that all ranks have. Collective: all ranks call it.

    Parameters
    ----------
    comm : CommunicatorBase
    home : Path
    owners : list of int
    keep : int
        How many stay.
    others : frozenset of str
        Sets of another training, which stay in any case.
    """
    with comm.together('checkpoint'):
        mine = set(folder.names_in(home)) - others
        finished = {name for name in mine if folder.is_finished(home / name)}
    common = set.intersection(*comm.allgather_obj(finished))
    newest = sorted(common, key=folder.number_of)[-keep:]
    with comm.together('checkpoint'):
        if owners[comm.rank] == comm.rank:
            for name in mine - set(newest):
                folder.remove(home / name)
            folder.sweep(home)
