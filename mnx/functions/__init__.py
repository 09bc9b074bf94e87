"""Communication as differentiable functions: each has a backward pass that communicates, too.

The objective is the sum over ranks of what each rank calls backward on. See `mnx.functions.node`.
"""

from mnx.functions.collectives import allgather as allgather
from mnx.functions.collectives import allreduce as allreduce
from mnx.functions.collectives import alltoall as alltoall
from mnx.functions.collectives import bcast as bcast
from mnx.functions.collectives import gather as gather
from mnx.functions.collectives import reduce as reduce
from mnx.functions.collectives import reduce_scatter as reduce_scatter
from mnx.functions.collectives import scatter as scatter
from mnx.functions.collectives import sync_grad as sync_grad
from mnx.functions.connect import pseudo_connect as pseudo_connect
from mnx.functions.point_to_point import recv as recv
from mnx.functions.point_to_point import send as send

__all__ = [
    'allgather',
    'allreduce',
    'alltoall',
    'bcast',
    'gather',
    'pseudo_connect',
    'recv',
    'reduce',
    'reduce_scatter',
    'scatter',
    'send',
    'sync_grad',
]
