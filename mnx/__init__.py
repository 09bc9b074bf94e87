"""Multi-process, multi-node training for Chainer's define-by-run models.

The public names, and nothing else::

    comm = mnx.create_communicator()
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm)
    train = mnx.scatter_dataset(train, comm, shuffle=True)
"""

# First of all, so that an error in the imports below ends the job, too.
from mnx.health import except_hook as _except_hook

_except_hook.install()

from mnx import chainer_compat as chainer_compat  # noqa: E402

chainer_compat.install()  # for a source tree without installation; else a .pth did it at start

from mnx import communicators as communicators  # noqa: E402
from mnx import datasets as datasets  # noqa: E402
from mnx import errors as errors  # noqa: E402
from mnx import extensions as extensions  # noqa: E402
from mnx import functions as functions  # noqa: E402
from mnx import global_except_hook as global_except_hook  # noqa: E402
from mnx import iterators as iterators  # noqa: E402
from mnx import links as links  # noqa: E402
from mnx import optimizers as optimizers  # noqa: E402
from mnx import testing as testing  # noqa: E402
from mnx.communicators import CommunicatorBase as CommunicatorBase  # noqa: E402
from mnx.communicators import Distributed as Distributed  # noqa: E402
from mnx.communicators import create_communicator as create_communicator  # noqa: E402
from mnx.datasets import DataSizeError as DataSizeError  # noqa: E402
from mnx.datasets import scatter_dataset as scatter_dataset  # noqa: E402
from mnx.datasets import scatter_index as scatter_index  # noqa: E402
from mnx.errors import MnxError as MnxError  # noqa: E402
from mnx.extensions import (  # noqa: E402
    create_multi_node_checkpointer as create_multi_node_checkpointer,
)
from mnx.extensions import (  # noqa: E402
    create_multi_node_evaluator as create_multi_node_evaluator,
)
from mnx.gradients.injection import inject_allreduce as inject_allreduce  # noqa: E402
from mnx.links import MultiNodeChainList as MultiNodeChainList  # noqa: E402
from mnx.links import parallelize as parallelize  # noqa: E402
from mnx.optimizers import (  # noqa: E402
    create_multi_node_optimizer as create_multi_node_optimizer,
)

__version__ = '0.1.0'
