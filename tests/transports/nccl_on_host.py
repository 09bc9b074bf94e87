"""What behaves like CuPy and NCCL, on host memory and over MPI: addresses, counts, groups, ids.

An array that lies far away stands for one on a GPU; NumPy's functions give it back as a plain one,
so what mnx does to it as if it were NumPy's shows. In NCCL's place is what takes what NCCL would
get, raw addresses and numbers of elements, and really moves and adds up what is there. So a wrong
offset, count, root, order or peer shows in the data. What this cannot show is how GPUs, streams and
NCCL itself behave.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from mnx.arrays import Array

NAMES = ['int8', 'uint8', 'int32', 'uint32', 'int64', 'uint64', 'float16', 'float32', 'float64']
_TAG = 77


class FarAway(np.ndarray):
    """Stands for `cupy.ndarray`."""

    def get(self, out: Array) -> Array:
        np.copyto(out, self.view(np.ndarray))
        return out

    def set(self, x: Array) -> None:
        assert not is_far(x)
        np.copyto(self.view(np.ndarray), x)


def far(x: Array) -> Array:
    return x.view(FarAway)


def is_far(x: Array) -> bool:
    return isinstance(x, FarAway)


def new_memory(nbytes: int) -> Array:
    return np.empty(nbytes, np.uint8)


def cupy_on_host() -> Any:
    """Return what stands for the module `cupy`, as far as mnx needs it here."""
    stream = SimpleNamespace(synchronize=lambda: None)
    return SimpleNamespace(
        ndarray=FarAway,
        asarray=lambda x: far(np.asarray(x)),
        empty=lambda shape, dtype: far(np.empty(shape, dtype)),
        concatenate=_concatenate,
        cuda=SimpleNamespace(get_current_stream=lambda: stream),
    )


def _concatenate(arrays: list[Array], out: Array | None = None, **options: Any) -> Array:
    assert all(map(is_far, arrays))
    return far(np.concatenate(arrays, out=out, **options))


class NcclError(RuntimeError):
    pass


class Ended:
    done = True


def memory(address: int, count: int, number: int) -> Array:
    """The numbers at an address."""
    dtype = np.dtype(NAMES[number])
    return np.ctypeslib.as_array(
        ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (count * dtype.itemsize,)
    ).view(dtype)


class Nccl:
    """Stands for the module `cupy.cuda.nccl`."""

    NcclError = NcclError

    def __init__(self, mpi: Any) -> None:
        self.mpi = mpi
        self.ops = [mpi.SUM, mpi.PROD, mpi.MAX, mpi.MIN]
        self.depth = 0
        self.queue: list[Callable[[], list[Any]]] = []
        self.calls: list[str] = []
        self._ids = itertools.count()
        for number, name in enumerate(NAMES):
            setattr(self, f'NCCL_{name.upper()}', number)
        for number, name in enumerate(('SUM', 'PROD', 'MAX', 'MIN')):
            setattr(self, f'NCCL_{name}', number)

    def get_unique_id(self) -> tuple[int, int]:
        return self.mpi.COMM_WORLD.rank, next(self._ids)

    def NcclCommunicator(self, size: int, unique_id: tuple[int, int], rank: int) -> Communicator:  # noqa: N802
        return Communicator(self, size, unique_id, rank)

    def groupStart(self) -> None:  # noqa: N802
        self.depth += 1

    def groupEnd(self) -> None:  # noqa: N802
        self.depth -= 1
        if self.depth == 0:
            queue, self.queue = self.queue, []
            requests = [request for call in queue for request in call()]
            self.mpi.Request.Waitall(requests)


class Communicator:
    """Stands for `cupy.cuda.nccl.NcclCommunicator`; its arguments are those of CuPy's."""

    def __init__(self, nccl: Nccl, size: int, unique_id: tuple[int, int], rank: int) -> None:
        world = nccl.mpi.COMM_WORLD
        creator, number = unique_id
        if rank == 0:
            assert creator == world.rank
            ranks = {0: creator}
            for _ in range(size - 1):
                place, member = world.recv(source=nccl.mpi.ANY_SOURCE, tag=_TAG)
                ranks[place] = member
            members = [ranks[i] for i in range(size)]
            for member in members[1:]:
                world.send(members, member, _TAG + 1)
        else:
            world.send((rank, world.rank), creator, _TAG)
            members = world.recv(source=creator, tag=_TAG + 1)
        self._nccl = nccl
        self._comm = world.Create_group(world.group.Incl(members), number)
        self.freed = False

    def _put(self, name: str, call: Callable[[], Any], stream: int) -> None:
        assert self._nccl.depth > 0
        assert stream == 1234
        self._nccl.calls.append(name)
        self._nccl.queue.append(lambda: [r for r in [call()] if r is not None])

    def send(self, source, count, dtype, peer, stream):
        x = memory(source, count, dtype)
        self._put('send', lambda: self._comm.Isend(x, peer), stream)

    def recv(self, target, count, dtype, peer, stream):
        x = memory(target, count, dtype)
        self._put('recv', lambda: self._comm.Irecv(x, peer), stream)

    def broadcast(self, source, target, count, dtype, root, stream):
        def call():
            x = memory(target, count, dtype)
            if self._comm.rank == root:
                x[:] = memory(source, count, dtype)
            self._comm.Bcast(x, root)

        self._put('broadcast', call, stream)

    def reduce(self, source, target, count, dtype, op, root, stream):
        def call():
            x = memory(source, count, dtype).copy()
            at_root = self._comm.rank == root
            y = memory(target, count, dtype) if at_root else None
            self._comm.Reduce(x, y, self._nccl.ops[op], root)

        self._put('reduce', call, stream)

    def allReduce(self, source, target, count, dtype, op, stream):  # noqa: N802
        def call():
            x = memory(source, count, dtype).copy()
            self._comm.Allreduce(x, memory(target, count, dtype), self._nccl.ops[op])

        self._put('allReduce', call, stream)

    def reduceScatter(self, source, target, count, dtype, op, stream):  # noqa: N802
        def call():
            x = memory(source, count * self._comm.size, dtype)
            y = memory(target, count, dtype)
            self._comm.Reduce_scatter_block(x, y, self._nccl.ops[op])

        self._put('reduceScatter', call, stream)

    def allGather(self, source, target, count, dtype, stream):  # noqa: N802
        def call():
            x = memory(source, count, dtype)
            self._comm.Allgather(x, memory(target, count * self._comm.size, dtype))

        self._put('allGather', call, stream)

    def check_async_error(self) -> None:
        pass

    def abort(self) -> None:
        self.freed = True

    def destroy(self) -> None:
        assert not self.freed
        self._comm.Free()
        self.freed = True


class HostLibrary:
    """Stands for `mnx.transports.nccl.CupyLibrary`."""

    def __init__(self, mpi: Any) -> None:
        self.nccl: Any = Nccl(mpi)
        self._name = f'gpu {mpi.COMM_WORLD.rank}'

    def pointer(self, x: Array) -> int:
        return x.ctypes.data

    def stream(self) -> int:
        return 1234

    def record(self) -> Ended:
        return Ended()

    def follow(self, event: Ended) -> None:
        pass

    @contextmanager
    def beside(self) -> Iterator[None]:
        yield

    def synchronize(self) -> None:
        pass

    def chosen_device(self) -> Callable[[], None]:
        return lambda: None

    def device(self) -> str:
        return self._name
