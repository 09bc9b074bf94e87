"""What the window cannot do goes by MPI."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.testing import create_on_nodes
from mnx.transports.mpi import MpiTransport
from tests.communicators.test_model_messages import link_of


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('nodes', [[4], [1, 1, 1, 1], [2, 2]], ids=str)
@pytest.mark.parametrize('name', ['two_dimensional', 'hierarchical'])
def test_a_rank_without_shared_memory(
    comm: Communicator, name: str, nodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks go by MPI, and rank 0 says why, once."""
    allocate = MpiTransport.allocate_shared

    def fails_at_the_end(transport: MpiTransport, nbytes: int) -> Any:
        window = allocate(transport, nbytes)
        if comm.rank == comm.size - 1:
            raise OSError('No space left on device')
        return window

    monkeypatch.setattr(MpiTransport, 'allocate_shared', fails_at_the_end)
    monkeypatch.setenv('MNX_PEER_MEMORY', '0')
    with create_on_nodes(name, nodes) as starved, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        for _ in range(2):
            model = link_of({'p': np.zeros(50_000)})
            model.p.grad = np.arange(50_000.0) + comm.rank
            starved.multi_node_mean_grad(model)
            expected = np.arange(50_000.0) + (comm.size - 1) / 2
            np.testing.assert_allclose(model.p.grad, expected, rtol=1e-15)
    texts = [str(w.message) for w in said if 'shared memory' in str(w.message)]
    assert len(texts) == (comm.rank == 0)
    assert all(f'rank {comm.size - 1}: No space left on device' in text for text in texts)
