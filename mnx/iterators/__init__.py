"""Iterators that give the same batches to all ranks, for models that stand on several of them."""

from mnx.iterators.multi_node import create_multi_node_iterator as create_multi_node_iterator
from mnx.iterators.synchronized import (
    create_synchronized_iterator as create_synchronized_iterator,
)

__all__ = ['create_multi_node_iterator', 'create_synchronized_iterator']
