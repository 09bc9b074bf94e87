"""Links that know of the other ranks."""

from mnx.links.batch_normalization import (
    MultiNodeBatchNormalization as MultiNodeBatchNormalization,
)
from mnx.links.batch_normalization import create_mnbn_model as create_mnbn_model

__all__ = ['MultiNodeBatchNormalization', 'create_mnbn_model']
