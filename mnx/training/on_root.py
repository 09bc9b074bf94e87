"""What one rank alone does, in a script that reads the same on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chainer.training import Extension

from mnx.errors import ArgumentError

if TYPE_CHECKING:
    from mnx.communicators import CommunicatorBase


def on_root(extension: Callable[..., Any], comm: CommunicatorBase, root: int = 0) -> Any:
    """Return `extension` on the root, and something that does nothing on the other ranks.

    For what writes or prints: logs, plots, progress bars, and ``print`` itself. Not for what all
    ranks must call together, such as a multi-node evaluator or `snapshot`. Not collective.

    Parameters
    ----------
    extension : Extension or callable
        What ``trainer.extend`` takes, or any function.
    comm : CommunicatorBase
    root : int

    Returns
    -------
    Extension or callable
        `extension` itself on the root; elsewhere an extension of the same name, trigger and
        priority, so that ``trainer.get_extension(name)`` finds one on every rank.

    Examples
    --------
    >>> from chainer import training
    >>> from chainer.training import extensions
    >>> import mnx
    >>> comm = mnx.create_communicator('local')
    >>> mnx.extensions.on_root(extensions.LogReport(), comm).default_name
    'LogReport'
    >>> say = mnx.extensions.on_root(print, comm)
    >>> say('once, not once per rank')
    once, not once per rank
    """
    if not 0 <= root < comm.size:
        raise ArgumentError(
            f'on_root: root is not a rank, expected 0 to {comm.size - 1} but got {root} '
            f'(rank {comm.rank} of {comm.size}). Name the rank that shall run the extension.'
        )
    return extension if comm.rank == root else Absent(extension)


class Absent(Extension):
    """Stands in the place of an extension that runs on another rank.

    Parameters
    ----------
    extension : Extension or callable
        Whose name, trigger and priority it takes.
    """

    def __init__(self, extension: Callable[..., Any]) -> None:
        self.name = getattr(extension, 'name', None)
        self._default_name = getattr(extension, 'default_name', None) or getattr(
            extension, '__name__', None
        )
        self.trigger = getattr(extension, 'trigger', Extension.trigger)
        self.priority = getattr(extension, 'priority', Extension.priority)

    @property
    def default_name(self) -> str | None:
        """The default name of the extension it stands for."""
        return self._default_name

    def __call__(self, *args: Any, **kwds: Any) -> None:
        """Do nothing."""
