"""Arrays on GPUs by NVIDIA's NCCL, by way of CuPy; all else by the transport below.

The only module of mnx, with `nccl_watch`, that knows NCCL, and CuPy is imported when a first array
on a GPU comes: until then the program may choose its device.

Operations are put into CuPy's current stream and return at once; what follows in that stream sees
their results. NCCL knows no tags, so a message from point to point is announced by MPI::

    sender      waits for "go"  ◄───1 MPI──── receiver      which has its header, and memory for it
                send            ─────2 NCCL──► recv         over a communicator of these two

A sender therefore waits until its message is wanted, as MPI's long ones do, and the order in which
NCCL sees messages is that in which they are received.

References: NCCL user guide (docs.nvidia.com/deeplearning/nccl), CuPy's `cupy.cuda.nccl`.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnx.arrays import Array, on_gpu
from mnx.errors import MissingPackageError, TransportError
from mnx.lazily import made_together
from mnx.transports import pickles
from mnx.transports.base import FRAME_BYTES, Pending, Transport
from mnx.transports.layer import Layer
from mnx.transports.nccl_watch import Event, Watch
from mnx.transports.waiting import waits

OLDEST = 20700  # NCCL 2.7 brought send and recv
_NEEDED = ('allReduce', 'allGather', 'broadcast', 'reduce', 'reduceScatter', 'send', 'recv')
_GO = np.zeros(1, np.uint8)


class CupyLibrary:
    """What the transport needs of CuPy: NCCL, pointers, streams and events."""

    def __init__(self) -> None:
        import cupy
        from cupy.cuda import nccl

        self.nccl: Any = nccl
        self._cuda = cupy.cuda
        self._side: Any = None

    def pointer(self, x: Array) -> int:
        """Return the address of a contiguous array."""
        return int(x.data.ptr)

    def stream(self) -> int:
        """Return the current stream."""
        return int(self._cuda.get_current_stream().ptr)

    def record(self) -> Event:
        """Return an event behind all that is in the current stream."""
        event: Event = self._cuda.Event(disable_timing=True)
        self._cuda.get_current_stream().record(event)
        return event

    def follow(self, event: Event) -> None:
        """Let what follows in the current stream wait for `event`."""
        self._cuda.get_current_stream().wait_event(event)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Make another stream the current one, which goes on from where this one is."""
        here = self.record()
        self._side = self._side or self._cuda.Stream(non_blocking=True)
        with self._side:
            self.follow(here)
            yield

    def synchronize(self) -> None:
        """Wait for all work of the current device."""
        self._cuda.runtime.deviceSynchronize()

    def chosen_device(self) -> Callable[[], None]:
        """Return what makes the current device that of another thread.

        A thread that asks for an event's state would otherwise occupy memory of device 0.
        """
        return self._cuda.Device().use  # type: ignore[no-any-return]

    def device(self) -> str:
        """Return the name of the current device, unlike that of any other in the job."""
        number = self._cuda.runtime.getDevice()
        return f'{socket.gethostname()} {self._cuda.runtime.deviceGetPCIBusId(number)}'


def probe() -> tuple[int, str]:
    """Return NCCL's version and what is wrong with it: ``(23203, '')`` if all is well."""
    try:
        from cupy.cuda import nccl

        version = int(nccl.get_version())
    except (ImportError, AttributeError, RuntimeError) as error:
        return 0, f'CuPy does not find NCCL ({error})'
    if version < OLDEST:
        return version, f'NCCL is older than 2.7 ({version})'
    missing = [name for name in _NEEDED if not hasattr(nccl.NcclCommunicator, name)]
    return version, f'CuPy is too old: its NCCL lacks {", ".join(missing)}' if missing else ''


def shared_devices(devices: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return what to say of ranks with one GPU between them, which NCCL does not like.

    >>> shared_devices(['a 0', 'a 1'], {})
    ''
    >>> shared_devices(['a 0', 'a 0'], {})[:35]
    'ranks 0, 1 have the same GPU (a 0).'
    """
    if environ.get('NCCL_MULTI_RANK_GPU_ENABLE') == '1' or 'NCCL_HOSTID' in environ:
        return ''
    device, count = Counter(devices).most_common(1)[0]
    if count == 1:
        return ''
    ranks = ', '.join(str(rank) for rank, name in enumerate(devices) if name == device)
    return (
        f'ranks {ranks} have the same GPU ({device}). Choose one for each rank, before the first '
        'collective: cupy.cuda.Device(comm.intra_rank).use(). To share one on purpose, set '
        'NCCL_MULTI_RANK_GPU_ENABLE=1 (NCCL 2.32 and newer).'
    )


@dataclass
class _Card:
    """What a rank brings when a communicator of NCCL is made."""

    device: str = ''
    unique_id: Any = None  # a tuple in CuPy 13, bytes since 14
    error: str = ''


class Clique:
    """One communicator of NCCL, and what is done around every use of it."""

    def __init__(self, library: Any, handle: Any, watch: Watch) -> None:
        self._library, self.handle, self._watch = library, handle, watch
        watch.follow(handle, library.chosen_device())

    @contextmanager
    def operation(self, name: str) -> Iterator[tuple[Any, int]]:
        """Yield communicator and stream for calls that NCCL treats as one."""
        self._watch.check()
        nccl = self._library.nccl
        try:
            nccl.groupStart()
            try:
                yield self.handle, self._library.stream()
            finally:
                nccl.groupEnd()
        except Exception as error:  # CuPy may fail to find words for an NcclError
            self._watch.check()  # it was aborted, and this is why
            raise TransportError(f'NCCL {name}: {error}. NCCL_DEBUG=INFO says more.') from error
        self._watch.started(name, self._library.record())


class NcclPending:
    """An all-reduce in a stream of its own."""

    def __init__(self, library: Any, event: Event, buffer: Array, watch: Watch) -> None:
        self._library, self._event, self._watch = library, event, watch
        self._buffer = buffer  # it must not be freed before

    def test(self) -> bool:
        """Return whether it has ended."""
        self._watch.check()
        return bool(self._event.done)

    def wait(self) -> None:
        """Let what follows in the current stream wait for it; the program itself goes on."""
        self._watch.check()
        self._library.follow(self._event)


class NcclTransport(Layer):
    """Carries arrays on GPUs by NCCL.

    Parameters
    ----------
    below : Transport
        Carries all other arrays, and those of dtypes that NCCL cannot reduce (int16, uint16;
        products of complex numbers). NCCL's unique ids travel by it.
    open_library : callable
        Returns a `CupyLibrary`, or in tests what behaves like one.
    holds : callable
        Tells whether an array lies where NCCL can reach it.
    """

    def __init__(
        self,
        below: Transport,
        open_library: Callable[[], Any] = CupyLibrary,
        holds: Callable[[Array], bool] = on_gpu,
    ) -> None:
        super().__init__(below)
        self._open_library, self._holds = open_library, holds
        self._own_tag = below.max_tag
        self.max_tag = below.max_tag - 1
        self._watch = Watch(float(os.environ.get('MNX_NCCL_TIMEOUT_S', '600')))
        self._cliques: list[Clique] = []
        self._pairs: dict[int, Clique] = {}

    def start(self) -> None:
        """Make NCCL's communicator now, not at the first array. Collective."""
        _ = self._world

    # --- from point to point ---------------------------------------------------------------------

    def send(self, buffer: Array, dest: int, tag: int) -> None:
        if not self._by_nccl(buffer) or dest == self.rank:
            super().send(buffer, dest, tag)
            return
        self._below.recv(_GO.copy(), dest, self._own_tag)
        with self._pair(dest).operation('send') as (handle, stream):
            handle.send(*self._bytes(buffer), int(dest > self.rank), stream)

    def recv(self, buffer: Array, source: int, tag: int) -> None:
        if not self._by_nccl(buffer) or source == self.rank:
            super().recv(buffer, source, tag)
            return
        self._below.send(_GO, source, self._own_tag)
        with self._pair(source).operation('recv') as (handle, stream):
            handle.recv(*self._bytes(buffer), int(source > self.rank), stream)

    # --- collectives -----------------------------------------------------------------------------

    def broadcast(self, buffer: Array, root: int) -> None:
        if not self._by_nccl(buffer):
            super().broadcast(buffer, root)
            return
        with self._world.operation('broadcast') as (handle, stream):
            pointer, *rest = self._bytes(buffer)
            handle.broadcast(pointer, pointer, *rest, root, stream)

    def reduce(self, buffer: Array, root: int, op: str = 'sum', into: Array | None = None) -> None:
        if not self._by_nccl(buffer, op):
            super().reduce(buffer, root, op, into)
            return
        with self._world.operation('reduce') as (handle, stream):
            pointer, *rest = self._numbers(buffer, op)
            target = self._library.pointer(buffer if into is None else into)
            received = target if self.rank == root else 0  # the others' stay as they are
            handle.reduce(pointer, received, *rest, root, stream)

    def all_reduce(self, buffer: Array, op: str = 'sum', into: Array | None = None) -> None:
        if not self._by_nccl(buffer, op):
            super().all_reduce(buffer, op, into)
            return
        target = buffer if into is None else into
        with self._world.operation('all_reduce') as (handle, stream):
            pointer, *rest = self._numbers(buffer, op)
            handle.allReduce(pointer, self._library.pointer(target), *rest, stream)

    def start_all_reduce(self, buffer: Array, op: str = 'sum') -> Pending:
        if not self._by_nccl(buffer, op):
            return super().start_all_reduce(buffer, op)
        with self._library.beside():
            self.all_reduce(buffer, op)
            event = self._library.record()
        return NcclPending(self._library, event, buffer, self._watch)

    def reduce_scatter(
        self, sent: Array, received: Array, counts: Sequence[int], op: str = 'sum'
    ) -> None:
        if not self._by_nccl(sent, op):
            super().reduce_scatter(sent, received, counts, op)
            return
        target = self._library.pointer(received)
        with self._world.operation('reduce_scatter') as (handle, stream):
            if len(set(counts)) == 1:
                pointer, _, *rest = self._numbers(sent, op)
                count = self._numbers(received, op)[1]
                handle.reduceScatter(pointer, target, count, *rest, stream)
                return
            for root, piece in self._parts(sent, counts):
                pointer, *rest = self._numbers(piece, op)
                handle.reduce(pointer, target if root == self.rank else 0, *rest, root, stream)

    def all_gather(self, sent: Array, received: Array, counts: Sequence[int]) -> None:
        if not self._by_nccl(received):
            super().all_gather(sent, received, counts)
            return
        source, *rest = self._bytes(sent)
        with self._world.operation('all_gather') as (handle, stream):
            if len(set(counts)) == 1:
                handle.allGather(source, self._library.pointer(received), *rest, stream)
                return
            for root, piece in self._parts(received, counts):
                pointer, *rest = self._bytes(piece)
                handle.broadcast(
                    source if root == self.rank else pointer, pointer, *rest, root, stream
                )

    def gather(self, sent: Array, received: Sequence[Array] | None, root: int) -> None:
        if not self._holds(sent):
            super().gather(sent, received, root)
            return
        self._exchange('gather', [(root, sent)], enumerate(received or ()))

    def scatter(self, sent: Sequence[Array] | None, received: Array, root: int) -> None:
        if not self._holds(received):
            super().scatter(sent, received, root)
            return
        self._exchange('scatter', enumerate(sent or ()), [(root, received)])

    def all_to_all(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        if not self._holds(sent[0]):
            super().all_to_all(sent, received)
            return
        self._exchange('all_to_all', enumerate(sent), enumerate(received))

    def _exchange(
        self,
        name: str,
        sends: Iterable[tuple[int, Array]],
        receives: Iterable[tuple[int, Array]],
    ) -> None:
        own: list[Array] = []
        with self._world.operation(name) as (handle, stream):
            for source, buffer in receives:
                if source == self.rank:
                    own.append(buffer)
                elif buffer.size:
                    handle.recv(*self._bytes(buffer), source, stream)
            for dest, buffer in sends:
                if dest == self.rank:
                    own[0][...] = buffer
                elif buffer.size:
                    handle.send(*self._bytes(buffer), dest, stream)

    # --- what NCCL is told -----------------------------------------------------------------------

    def _by_nccl(self, buffer: Array, op: str | None = None) -> bool:
        if not self._holds(buffer) or not buffer.size:
            return False
        return op is None or self._dtype(buffer.dtype, op) is not None

    def _dtype(self, dtype: np.dtype[Any], op: str) -> int | None:
        """Return NCCL's number for the dtype; None if it cannot reduce it."""
        if dtype.kind == 'c' and op == 'sum':  # the sum of pairs is the pair of sums
            dtype = np.dtype(f'f{dtype.itemsize // 2}')
        number: int | None = getattr(self._library.nccl, f'NCCL_{dtype.name.upper()}', None)
        return number

    def _numbers(self, buffer: Array, op: str) -> tuple[int, int, int, int]:
        """Return pointer, count, dtype and operation."""
        dtype = self._dtype(buffer.dtype, op)
        assert dtype is not None
        count = buffer.size * (2 if buffer.dtype.kind == 'c' else 1)
        operation = getattr(self._library.nccl, f'NCCL_{op.upper()}')
        return self._library.pointer(buffer), count, dtype, operation

    def _bytes(self, buffer: Array) -> tuple[int, int, int]:
        """Return pointer, count and dtype of what is only moved."""
        return self._library.pointer(buffer), buffer.nbytes, self._library.nccl.NCCL_UINT8

    def _parts(self, whole: Array, counts: Sequence[int]) -> Iterator[tuple[int, Array]]:
        start = 0
        for rank, count in enumerate(counts):
            if count:
                yield rank, whole[start : start + count]
            start += count

    # --- communicators of NCCL -------------------------------------------------------------------

    @made_together
    def _library(self) -> Any:
        try:
            return self._open_library()
        except ImportError as error:
            raise MissingPackageError(
                f'an array on a GPU needs CuPy with NCCL ({error}). Install mnx[cuda12] or '
                'mnx[cuda13].'
            ) from error

    @made_together
    def _world(self) -> Clique:
        """The communicator of all ranks. Collective at first use."""
        _ = self._library  # without CuPy this says what to install
        cards = self._agreed(self._card())
        fault = shared_devices([card.device for card in cards], os.environ)
        if fault:
            raise TransportError(f'NCCL: {fault}')
        card, handle = _Card(), None
        try:
            handle = self._join(self.size, cards[0].unique_id, self.rank)
        except Exception as error:
            card.error = f'{type(error).__name__}: {error}'
        self._agreed(card)
        return self._made(handle)

    def _card(self) -> _Card:
        try:
            unique_id = self._library.nccl.get_unique_id() if self.rank == 0 else None
            return _Card(self._library.device(), unique_id)
        except Exception as error:
            return _Card(error=f'{type(error).__name__}: {error}')

    def _agreed(self, card: _Card) -> list[_Card]:
        """Return all ranks' cards; all ranks raise, or none. Collective."""
        cards: list[_Card] = pickles.all_gather(self._below, card)
        errors = [f'rank {r}: {c.error}' for r, c in enumerate(cards) if c.error]
        if errors:
            raise TransportError(
                f'NCCL cannot start. {"; ".join(errors)}. Is there one GPU for each rank, chosen '
                'before the first collective? NCCL_DEBUG=INFO says more.'
            )
        return cards

    def _pair(self, peer: int) -> Clique:
        """Return the communicator of this rank and `peer`, who both call this."""
        if peer not in self._pairs:
            nccl = self._library.nccl
            if self.rank < peer:
                unique_id = nccl.get_unique_id()
                self._below.send_frame(pickles.dumps(unique_id).tobytes(), peer, self._own_tag)
            else:
                frame = bytearray(FRAME_BYTES)
                self._below.recv_frame(frame, peer, self._own_tag)
                unique_id = pickles.loads(np.frombuffer(frame, np.uint8))
            self._pairs[peer] = self._made(self._join(2, unique_id, int(self.rank > peer)))
        return self._pairs[peer]

    @waits
    def _join(self, size: int, unique_id: Any, rank: int) -> Any:
        """Return NCCL's handle, when all ranks of the new communicator are there."""
        return self._library.nccl.NcclCommunicator(size, unique_id, rank)

    def _made(self, handle: Any) -> Clique:
        clique = Clique(self._library, handle, self._watch)
        self._cliques.append(clique)
        return clique

    def split(self, color: int, key: int) -> NcclTransport:
        below = self._below.split(color, key)
        return NcclTransport(below, self._open_library, self._holds)

    def close(self) -> None:
        if self._cliques:
            self._library.synchronize()  # still watched: what hangs is aborted, and so ends
        well = self._watch.stop()
        while self._cliques:
            handle = self._cliques.pop().handle
            if well:
                handle.destroy()
        super().close()
        self._watch.check()
