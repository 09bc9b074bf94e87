"""One file, for what all ranks must save together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chainer import serializers
from chainer.serializer import Serializer

if TYPE_CHECKING:
    from mnx.communicators import Communicator


class Discard(Serializer):
    """Saves nothing: for a rank that takes part in saving, but does not write."""

    def __getitem__(self, key: str) -> Discard:
        return self

    def __call__(self, key: str, value: Any) -> Any:
        """Return `value`."""
        return value


def save_npz(
    file: Any, obj: Any, comm: Communicator, compression: bool = True, *, root: int = 0
) -> None:
    """Save an object with parallel links in it, as ``chainer.serializers.save_npz`` does.

    The file is that of one process: each parameter, and each array of an optimizer's state, is in
    it as a whole. ``chainer.serializers.load_npz`` loads it, on any number of ranks.

    Collective: all ranks call it; the root alone writes. If it cannot, all ranks raise.

    Parameters
    ----------
    file : path or file
        Counts on the root.
    obj : Link, Optimizer, Trainer ...
    comm : Communicator
        Of the parallel links.
    compression : bool
    root : int

    Notes
    -----
    The root holds the whole in memory, the other ranks one parameter at a time.
    """
    with comm.together('save_npz'):
        if comm.rank == root:
            serializers.save_npz(file, obj, compression)
        else:
            obj.serialize(Discard())


def save_hdf5(
    filename: Any, obj: Any, comm: Communicator, compression: int = 4, *, root: int = 0
) -> None:
    """As `save_npz`, into a file that ``chainer.serializers.load_hdf5`` loads.

    Collective: all ranks call it; the root alone writes. If it cannot, all ranks raise.
    """
    with comm.together('save_hdf5'):
        if comm.rank == root:
            serializers.save_hdf5(filename, obj, compression)
        else:
            obj.serialize(Discard())
