"""Any Chainer optimizer, on many ranks."""

from mnx.optimizers.multi_node import MultiNodeOptimizer as MultiNodeOptimizer
from mnx.optimizers.multi_node import create_multi_node_optimizer as create_multi_node_optimizer

__all__ = ['MultiNodeOptimizer', 'create_multi_node_optimizer']
