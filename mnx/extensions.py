"""Extensions of Chainer's Trainer for many ranks: the public names, and nothing else."""

from mnx.training.checkpoints.checkpointer import (
    MultiNodeCheckpointer,
    create_multi_node_checkpointer,
)
from mnx.training.checkpoints.extension import Checkpoint
from mnx.training.checkpoints.loading import Resumed
from mnx.training.early_stopping import MultiNodeEarlyStoppingTrigger
from mnx.training.evaluator import MultiNodeEvaluator, create_multi_node_evaluator
from mnx.training.generic_evaluator import GenericMultiNodeEvaluator
from mnx.training.observations import ObservationAggregator
from mnx.training.on_root import on_root
from mnx.training.persistents import AllreducePersistent
from mnx.training.replica_snapshot import MultiNodeSnapshot, multi_node_snapshot
from mnx.training.snapshot import Snapshot, resume, snapshot

__all__ = [
    'create_multi_node_evaluator',
    'MultiNodeEvaluator',
    'GenericMultiNodeEvaluator',
    'AllreducePersistent',
    'ObservationAggregator',
    'MultiNodeEarlyStoppingTrigger',
    'on_root',
    'snapshot',
    'Snapshot',
    'resume',
    'multi_node_snapshot',
    'MultiNodeSnapshot',
    'Checkpoint',
    'Resumed',
    'create_multi_node_checkpointer',
    'MultiNodeCheckpointer',
]
