"""Any Chainer optimizer, on many ranks."""

from mnx.optimizers.create import create_multi_node_optimizer as create_multi_node_optimizer
from mnx.optimizers.double_buffering import DoubleBufferingOptimizer as DoubleBufferingOptimizer
from mnx.optimizers.multi_node import MultiNodeOptimizer as MultiNodeOptimizer

__all__ = ['DoubleBufferingOptimizer', 'MultiNodeOptimizer', 'create_multi_node_optimizer']
