"""Links for many processes: models and layers cut over ranks, statistics of all ranks."""

from mnx.links import optimizer_hooks as optimizer_hooks  # adapts Chainer's to split parameters
from mnx.links.batch_normalization import MultiNodeBatchNormalization as MultiNodeBatchNormalization
from mnx.links.batch_normalization import create_mnbn_model as create_mnbn_model
from mnx.links.chain_list import MultiNodeChainList as MultiNodeChainList
from mnx.links.n_step_rnn import MultiNodeNStepRNN as MultiNodeNStepRNN
from mnx.links.n_step_rnn import create_multi_node_n_step_rnn as create_multi_node_n_step_rnn
from mnx.links.parallel_convolution import ParallelConvolution2D as ParallelConvolution2D
from mnx.links.parallel_linear import ParallelLinear as ParallelLinear
from mnx.links.parallelize import parallelize as parallelize
from mnx.links.saving import save_hdf5 as save_hdf5
from mnx.links.saving import save_npz as save_npz

__all__ = [
    'MultiNodeBatchNormalization',
    'MultiNodeChainList',
    'MultiNodeNStepRNN',
    'ParallelConvolution2D',
    'ParallelLinear',
    'create_mnbn_model',
    'create_multi_node_n_step_rnn',
    'parallelize',
    'save_hdf5',
    'save_npz',
]
