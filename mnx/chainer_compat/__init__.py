"""Let Chainer 7.8.1, the last release, run on the Python and NumPy of today.

Chainer's text on disk stays as it is, and so does NumPy. A few lines of Chainer are replaced while
its modules are loaded::

    python starts ── mnx-chainer.pth ── _mnx_chainer_finder        (1) one tiny module, then wait
    import chainer ── ChainerFinder ─── mnx.chainer_compat         (2) install() the real finder
    chainer.xyz ───── PatchFinder ───── is it in patches.PATCHES?  (3) no: as ever
                                        └─ yes: PatchLoader        (4) read, replace, compile

Step (1) makes it independent of the order of imports and lets worker processes (fork, forkserver,
spawn) unpickle Chainer's objects before they know of mnx. ``import mnx`` calls `install` too, for
a source tree on ``sys.path`` without an installation. ``MNX_CHAINER_COMPAT=0`` turns all of it off.

This package imports nothing of mnx but itself, and must not: it is loaded before mnx is.
"""

from mnx.chainer_compat.loading import PatchFinder, install
from mnx.chainer_compat.patches import PATCHES, Fragment, Patch

__all__ = ['PATCHES', 'Fragment', 'Patch', 'PatchFinder', 'install']
