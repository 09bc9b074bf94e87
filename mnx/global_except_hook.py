"""ChainerMN's name for what mnx does by itself: a rank that fails ends the whole job.

See `mnx.health.except_hook`. ``MNX_EXCEPT_HOOK=0`` turns it off. ChainerMN's own variable,
``CHAINERMN_FORCE_ABORT_ON_EXCEPTION``, is not needed and not read.
"""

from __future__ import annotations

from mnx.health import except_hook


def add_hook() -> None:
    """Make an uncaught exception or ``sys.exit(n != 0)`` of this rank end the job.

    ``import mnx`` has done so already; calling it again does nothing. ``MNX_EXCEPT_HOOK=0`` is
    obeyed. Not collective.
    """
    except_hook.install()
