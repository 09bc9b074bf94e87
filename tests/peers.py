"""Whether processes can reach each other's memory on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from mnx import kernels


def may_reach_others() -> bool:
    """Tell whether Linux lets processes of one user debug one another here."""
    scope = Path('/proc/sys/kernel/yama/ptrace_scope')
    may_debug = os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == '0'
    return kernels.built and may_debug
