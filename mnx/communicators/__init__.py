"""What users talk to: shapes, tuples, dtypes, objects, models, errors."""

from mnx.communicators.base import Communicator as Communicator
from mnx.communicators.base import Communicator as CommunicatorBase
from mnx.communicators.distributed import Distributed as Distributed
from mnx.communicators.factory import create_communicator as create_communicator

__all__ = ['Communicator', 'CommunicatorBase', 'Distributed', 'create_communicator']
