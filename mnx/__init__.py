"""Multi-process, multi-node training for Chainer's define-by-run models.

The public names, and nothing else::

    comm = mnx.create_communicator()
    optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm)
"""

__version__ = '0.1.0'

from mnx.health import except_hook as _except_hook

_except_hook.install()

from mnx import errors as errors  # noqa: E402
from mnx.communicators import CommunicatorBase as CommunicatorBase  # noqa: E402
from mnx.communicators import create_communicator as create_communicator  # noqa: E402
from mnx.errors import MnxError as MnxError  # noqa: E402
from mnx.optimizers import (  # noqa: E402
    create_multi_node_optimizer as create_multi_node_optimizer,
)
