"""Sum in the node by shares, each share across the nodes, and every rank takes all shares.

Two nodes of two ranks; a chunk of gradients has two shares (left, right)::

            node 0                      node 1
    rank 0   │   rank 1         rank 2   │   rank 3
      └──1 sum──┘                  └──1 sum──┘          in the shared window of each node
    [left]     [right]          [left]     [right]
       └────────────2 allreduce───┘                     left: ranks 0 and 2
                  └────────────2 allreduce───┘          right: ranks 1 and 3, at the same time
      └──3 copy─┘                  └──3 copy─┘          out of the window

Each node sends every number once, which is the minimum, and by several ranks at a time. With
nodes of unequal size there are as many shares as the smallest node has ranks. With a single node
there is nothing in the middle, and another way to the same bits, `straight_sums`: both are tried,
and the quicker one is taken.

Gradients on GPUs go the same ways, NCCL in the window's place (a reduce-scatter, an all-gather),
where each rank has a GPU of its own; otherwise by one all-reduce. Not run on a GPU.

References: Jia et al. 2018 (arXiv:1807.11205, section 3.3), Mikami et al. 2018 (arXiv:1811.05233).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mnx import packing
from mnx.arrays import Array, empty_at, on_gpu
from mnx.communicators import narrow
from mnx.communicators.base import Communicator
from mnx.communicators.choice import one_gpu_each
from mnx.communicators.chunks import share
from mnx.communicators.model_messages import Scaling
from mnx.communicators.node_window import NodeWindow
from mnx.communicators.parameters import Layout
from mnx.communicators.straight_sums import StraightSums
from mnx.communicators.trials import Trials
from mnx.lazily import made_together
from mnx.packing import Bucket
from mnx.transports import devices, pickles
from mnx.transports.base import Transport
from mnx.transports.nccl import NcclTransport
from mnx.transports.peer_memory import peer_memory_of

WINDOW_FROM_IN_NODE = 8 * 1024
WINDOW_FROM_ACROSS_NODES = 32 * 1024
STRAIGHT_FROM = 32 * 1024  # on average of several arrays: each is found in other processes anew
ARRAY_FROM_IN_NODE = 16 * 1024  # of a single array, which needs no packing
ARRAY_FROM_ACROSS_NODES = 512 * 1024
ROWS_FROM = 128 * 1024  # of all rows of a reduce-scatter, in one node
STRAIGHT_CHUNK = 384 * 1024  # what is fetched, and its sum, stay in the cache of a core
SHARE_IN_NODE = 192 * 1024  # of each chunk; more would not stay in the cache of a core
CHUNK_IN_NODE = 512 * 1024  # at most: each rank holds three of them
CHUNK_ACROSS_NODES = 4 * 1024 * 1024
KINDS_KEPT = 100  # of arrays, and what each way has taken for them

_AS_IT_IS = Scaling(1.0, 1.0)


SumsInNode = StraightSums | NodeWindow


@dataclass(frozen=True)
class AcrossNodes:
    """What is done to a share: each rank's part scaled, the other nodes' added, the sum scaled.

    Attributes
    ----------
    scaling : Scaling
    inter : Transport or None
        None if there is one node.
    wire : numpy.dtype or None
        16 bits between nodes; None: as summed.
    node_size : int
        Ranks of the largest node. In 16 bits travels a sum divided by it, no larger than the
        gradients themselves.
    """

    scaling: Scaling
    inter: Transport | None
    wire: np.dtype[Any] | None
    node_size: int

    def before(self, part: Array) -> None:
        """Scale what this rank contributes, in place."""
        self.scaling.before(part)

    def after(self, total: Array) -> None:
        """Add what the other nodes have, and scale it, in place."""
        if self.inter is None or self.wire is None:
            if self.inter is not None:
                self.inter.all_reduce(total)
            self.scaling.after(total)
            return
        total *= 1 / self.node_size
        rest = Scaling(1.0, self.scaling.divisor / self.node_size)
        narrow.all_reduce(self.inter, total, self.wire, rest.after)

    def changes_input(self) -> bool:
        """Tell whether `before` does anything."""
        return self.scaling.factor != 1.0

    def divisor(self) -> float | None:
        """Return by what `after` divides, if it does nothing else."""
        return self.scaling.divisor if self.inter is None else None


class TwoDimensionalCommunicator(Communicator):
    """Shared memory or NCCL inside a node, MPI across nodes; what is short goes by MPI alone."""

    name = 'two_dimensional'

    def mean_arrays(self, arrays: list[Array], layout: Layout, scaling: Scaling) -> None:
        """Replace arrays by their mean over all ranks, in place. Collective."""
        on_cpu = layout.place == 'cpu'  # as on all ranks, which have compared it
        shortest = WINDOW_FROM_IN_NODE if self.inter_size == 1 else WINDOW_FROM_ACROSS_NODES
        if layout.nbytes < shortest or self.size == 1 or not on_cpu:
            super().mean_arrays(arrays, layout, scaling)
            return
        dtype = self._config.allreduce_grad_dtype  # `set_config` may have changed it
        ways = self._ways(plain=_is_plain(layout, dtype) and not scaling.weighted)
        steps = self._steps(scaling, self.narrow_wire())

        def go(way: SumsInNode) -> None:
            for bucket, plan in self._known_plans(layout, dtype, way):
                way.sum(plan, bucket.of(arrays), steps)

        if ways:
            kind = layout.digest, len(layout.names), dtype
            self._go_the_quickest(ways, kind, layout.nbytes, go)
        else:
            super().mean_arrays(arrays, layout, scaling)

    def _ways(self, *, plain: bool) -> list[SumsInNode]:
        """Return what can sum here, all to the same bits: `plain` arrays, or any. Collective."""
        straight = self._straight if plain else None
        return [way for way in (straight, self._window) if way is not None]

    def _go_the_quickest(
        self, ways: list[SumsInNode], kind: Hashable, nbytes: int, go: Callable[[SumsInNode], None]
    ) -> None:
        """Go one of the ways, by what they took a byte for arrays of that kind. Collective.

        The kind is what the ranks have compared, so that all of them remember alike. A layout
        itself is made anew on one rank alone, for instance when a gradient was missing there.
        """
        if len(ways) == 1:
            go(ways[0])
            return
        trials = self._trials.get(kind) or self._remember(kind, Trials(len(ways)))
        way, is_timed = trials.choose()
        if not is_timed:
            go(ways[way])
            return
        start = perf_counter_ns()
        go(ways[way])
        words = np.array([start - perf_counter_ns()], np.int64)
        self._control.find_largest(words)  # the shortest time: the others waited for that rank
        trials.tell(way, -float(words[0]) / nbytes)

    def _remember(self, kind: Hashable, trials: Trials) -> Trials:
        if len(self._trials) >= KINDS_KEPT:
            self._trials.clear()
        self._trials[kind] = trials
        return trials

    @functools.cached_property
    def _trials(self) -> dict[Hashable, Trials]:
        return {}

    def _steps(self, scaling: Scaling, wire: np.dtype[Any] | None = None) -> AcrossNodes:
        inter = self.groups.inter if self.inter_size > 1 else None
        return AcrossNodes(scaling, inter, wire, self._largest_node)

    @functools.cached_property
    def _largest_node(self) -> int:
        return max(map(len, self.topology.nodes))

    def reduce_flat(
        self, sent: Array, into: Array | None, op: str, root: int | None = None
    ) -> None:
        """Put the reduction `into` an array of the root, or of every rank. Collective."""
        one_way = root is not None and self.inter_size > 1  # nothing has to come back
        shortest = ARRAY_FROM_IN_NODE if self.inter_size == 1 else ARRAY_FROM_ACROSS_NODES
        in_nodes = self._may_be_summed(sent, op, shortest) and not one_way
        ways = self._ways(plain=sent.dtype in packing.DTYPES_IN_C) if in_nodes else []
        if not ways:
            super().reduce_flat(sent, into, op, root)
            return
        steps, kind = self._steps(_AS_IT_IS), (root is None, sent.size.bit_length(), sent.dtype)
        self._go_the_quickest(ways, kind, sent.nbytes, lambda way: way.sum_flat(sent, into, steps))

    def reduce_rows(self, sent: Array, into: Array, counts: Sequence[int], op: str) -> None:
        """Reduce a row of `counts` elements for each rank; put this rank's there. Collective."""
        is_plain = sent.dtype in packing.DTYPES_IN_C and len(set(counts)) == 1
        in_node = is_plain and self._may_be_summed(sent, op, ROWS_FROM)
        straight = self._straight if in_node else None
        if straight is None:
            super().reduce_rows(sent, into, counts, op)
        else:
            straight.sum_rows(sent, into, self._steps(_AS_IT_IS))

    def _may_be_summed(self, sent: Array, op: str, from_bytes: int) -> bool:
        """Tell whether a flat array may go another way than by MPI."""
        has_peers = self._largest_node > 1 and not on_gpu(sent)
        return has_peers and op == 'sum' and sent.nbytes >= from_bytes

    def sum_buffer(self, buffer: Array) -> None:
        """Replace a flat buffer by its sum over all ranks. Collective."""
        node = self._node if on_gpu(buffer) else None
        if node is None:
            super().sum_buffer(buffer)
        elif self.inter_size == 1:
            node.all_reduce(buffer)
        else:
            self._sum_by_shares(buffer, node)

    def _sum_by_shares(self, buffer: Array, node: Transport) -> None:
        shares = [share(buffer.size, rank, self.owners()) for rank in range(node.size)]
        counts = [part.stop - part.start for part in shares]
        own = empty_at('gpu', (counts[node.rank],), buffer.dtype)
        node.reduce_scatter(buffer, own, counts)
        if own.size:
            self.groups.inter.all_reduce(own)
        node.all_gather(own, buffer, counts)

    @made_together
    def _node(self) -> NcclTransport | None:
        """NCCL among the ranks of this node, if every node has it. Collective."""
        if not (self.needs_nccl or one_gpu_each(self.topology, devices.survey(self._control))):
            return None
        node = self._own(NcclTransport(self.groups.intra))
        with self.together('the start of NCCL'):
            node.start()
        return node

    def owners(self) -> int:
        """Return how many ranks of each node sum a share."""
        return min(len(ranks) for ranks in self.topology.nodes)

    @made_together
    def _straight(self) -> StraightSums | None:
        """Sums by the ranks' reading of each other's memory; none if any cannot. Collective."""
        if not self.inter_size == 1 < self.size:
            return None
        # without checks nobody would know of lengths that differ, and one wrote too much elsewhere
        peers = peer_memory_of(self._control, wanted=self.meetings.checks)
        return None if peers is None else StraightSums(self._control, peers, STRAIGHT_CHUNK)

    @made_together
    def _window(self) -> NodeWindow | None:
        """The window of this node; none if any node has no memory to share. Collective."""
        in_node = min(CHUNK_IN_NODE, SHARE_IN_NODE * self.owners())
        chunk = in_node if self.inter_size == 1 else CHUNK_ACROSS_NODES
        window, problem = None, ''
        try:
            window = NodeWindow(self.groups.intra, self.owners(), chunk)
        except Exception as error:  # MPI's own, of many kinds
            problem = f'rank {self.rank}: {error}'
        problems = list(filter(None, pickles.all_gather(self._control, problem)))
        if window is None or problems:
            self._say_without_window(problems)
            return None
        return self._own(window)

    def _say_without_window(self, problems: list[str]) -> None:
        if self.rank == 0:
            warnings.warn(
                f'{self.name}: no shared memory ({problems[0]}), so sums go without, '
                'which is slower. In a container, give it more by --shm-size or --ipc=host.',
                stacklevel=2,
            )

    @functools.cached_property
    def _plans(self) -> WeakKeyDictionary[Layout, dict[Any, list[tuple[Bucket, Any]]]]:
        return WeakKeyDictionary()

    def _known_plans(
        self, layout: Layout, dtype: np.dtype[Any] | None, way: SumsInNode
    ) -> list[tuple[Bucket, Any]]:
        """Return, for each dtype that is summed, its arrays and how they are cut."""
        known = self._plans.setdefault(layout, {})
        if (way, dtype) not in known:
            # without packing by size, the buckets of a sum are one for each dtype
            buckets = layout.sum_plan(dtype, float('inf'))
            known[way, dtype] = [(b, way.plan(b.shapes, b.wire)) for b in buckets]
        return known[way, dtype]


def _is_plain(layout: Layout, dtype: np.dtype[Any] | None) -> bool:
    """Tell whether gradients are long, and summed in their own dtype, one that goes straight."""
    is_long = layout.nbytes >= STRAIGHT_FROM * len(layout.names)
    own = layout.dtypes
    return is_long and own <= packing.DTYPES_IN_C and (dtype is None or own == {dtype})
