"""The same exchange by others, where they are installed: ChainerMN and PyTorch.

They run in the same processes and take turns with mnx. Nothing of mnx needs them.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from typing import Any

import chainer
import numpy as np
from mpi4py import MPI
from timing import Candidate

BUCKET_BYTES = 25 * 1024 * 1024  # PyTorch's bucket_cap_mb


def chainermn_naive(model: chainer.Link) -> Candidate:
    """ChainerMN's 'naive', the only one of its communicators that works without a GPU."""
    import chainermn

    comm = chainermn.create_communicator('naive')
    return lambda: comm.multi_node_mean_grad(model)


def gloo(model: chainer.Link) -> Candidate:
    """PyTorch's gloo, as DistributedDataParallel uses it by default.

    Scaled into buckets of 25 MiB, the last gradients first; each all-reduced as soon as it is
    full; copied back. (DistributedDataParallel loops in C++ and not in Python: for 400 small
    arrays this takes about half a millisecond more.)
    """
    torch, scale = _torch(), 1 / MPI.COMM_WORLD.size
    grads = [torch.from_numpy(param.grad) for param in reversed(list(model.params()))]
    buckets = [(_buffer(torch, part), part) for part in _buckets(grads)]

    def run() -> None:
        pending = []
        for (buffer, views), part in buckets:
            for view, grad in zip(views, part, strict=True):
                torch.mul(grad, scale, out=view)
            pending.append(torch.distributed.all_reduce(buffer, async_op=True))
        for ((_, views), part), work in zip(buckets, pending, strict=True):
            work.wait()
            for view, grad in zip(views, part, strict=True):
                grad.copy_(view)

    return run


def gloo_views(model: chainer.Link) -> Candidate:
    """The same with gradient_as_bucket_view=True: gradients live in the buckets, none is copied.

    Works on buckets of its own, since Chainer's gradients live elsewhere.
    """
    torch, scale = _torch(), 1 / MPI.COMM_WORLD.size
    grads = [torch.from_numpy(param.grad) for param in reversed(list(model.params()))]
    buffers = [_buffer(torch, part)[0] for part in _buckets(grads)]

    def run() -> None:
        pending = [
            torch.distributed.all_reduce(buffer.mul_(scale), async_op=True) for buffer in buffers
        ]
        for work in pending:
            work.wait()

    return run


PEERS: dict[str, tuple[str, Callable[[chainer.Link], Candidate]]] = {
    'chainermn naive': ('chainermn', chainermn_naive),
    'gloo': ('torch', gloo),
    'gloo views': ('torch', gloo_views),
}


def chosen(option: str) -> dict[str, Callable[[chainer.Link], Candidate]]:
    """Return the peers so named: 'chainermn', 'gloo', or 'all' that are installed. Collective."""
    wanted = option.split(',') if option else []
    unknown = set(wanted) - {'all', 'chainermn', 'gloo'}
    if unknown:
        raise SystemExit(f'--peers: chainermn, gloo or all, not {", ".join(sorted(unknown))}')
    found = {
        name: make
        for name, (library, make) in PEERS.items()
        if name.split()[0] in wanted or ('all' in wanted and importlib.util.find_spec(library))
    }
    if 'gloo' in found:
        _torch()  # before memory is measured: the library itself is no communicator's
    return found


def _torch() -> Any:
    """Return torch, its ranks joined over the loopback device."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        world = MPI.COMM_WORLD
        os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
        torch.set_num_threads(1)
        store = world.bcast(tempfile.mktemp() if world.rank == 0 else None)
        torch.distributed.init_process_group(
            'gloo', init_method=f'file://{store}', rank=world.rank, world_size=world.size
        )
    return torch


def _buckets(grads: list[Any]) -> list[list[Any]]:
    """Cut a list of tensors into stretches of 25 MiB, or of one tensor."""
    found: list[list[Any]] = []
    room = 0
    for grad in grads:
        nbytes = grad.numel() * 4
        if nbytes > room:
            found.append([])
            room = BUCKET_BYTES
        found[-1].append(grad)
        room -= nbytes
    return found


def _buffer(torch: Any, part: list[Any]) -> tuple[Any, list[Any]]:
    """Return a buffer for these tensors, and its views in their shapes."""
    buffer = torch.from_numpy(np.zeros(sum(grad.numel() for grad in part), 'f4'))
    flat = buffer.split([grad.numel() for grad in part])
    return buffer, [view.view(grad.shape) for view, grad in zip(flat, part, strict=True)]
