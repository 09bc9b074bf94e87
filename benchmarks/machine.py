"""What a benchmark ran on: enough to tell whether two results can be compared. No names."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np

SETTINGS = ('OMP_NUM_THREADS', 'MPIR_CVAR_ENABLE_HEAVY_YIELD', 'MNX_CHECK')


def describe() -> dict[str, str]:
    """Return processor, memory, system, libraries and settings, and how busy the machine was."""
    set_here = [f'{name}={os.environ[name]}' for name in SETTINGS if name in os.environ]
    found = {
        'processor': _first(r'model name\s*: (.*)', '/proc/cpuinfo') or platform.machine(),
        'cores': str(len(os.sched_getaffinity(0)) if _on_linux() else os.cpu_count()),
        'cache': ' + '.join(_caches()),
        'memory': _memory(),
        'system': f'{platform.system()} {".".join(platform.release().split(".")[:2])}',
        'Python': platform.python_version(),
        'NumPy': np.__version__,
        **_mpi(),
        'settings': ' '.join(set_here),
        'load': LOAD_BEFORE,
    }
    return {name: value for name, value in found.items() if value}


def _on_linux() -> bool:
    return hasattr(os, 'sched_getaffinity')


def _first(pattern: str, path: str) -> str:
    """Return what the pattern finds first in a file, or nothing."""
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return ''
    return found[1].strip() if found else ''


LOAD_BEFORE = _first(r'(\S+)', '/proc/loadavg')  # when imported: before there is work of our own


def _memory() -> str:
    kib = _first(r'MemTotal:\s*(\d+)', '/proc/meminfo')
    return f'{int(kib) / 2**20:.0f} GiB' if kib else ''


def _caches() -> list[str]:
    folder = Path('/sys/devices/system/cpu/cpu0/cache')
    levels = sorted(folder.glob('index[2-9]')) if folder.exists() else []
    return [f'L{_first("(.*)", f"{p}/level")} {_first("(.*)", f"{p}/size")}' for p in levels]


def _mpi() -> dict[str, str]:
    """Return the versions of MPI and mpi4py."""
    import mpi4py
    from mpi4py import MPI

    library = ' '.join(MPI.Get_library_version().splitlines()[0].replace('Version:', '').split())
    return {'MPI': library.split(',')[0], 'mpi4py': mpi4py.__version__}
