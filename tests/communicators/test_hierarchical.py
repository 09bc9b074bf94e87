"""Who talks across the nodes: the one thing in which it differs from `two_dimensional`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnx.communicators import Communicator
from mnx.testing import create_on_nodes
from tests.communicators.test_model_messages import link_of


@pytest.mark.needs_ranks(4)
@pytest.mark.parametrize(
    ('name', 'talk'), [('hierarchical', [0, 2]), ('two_dimensional', [0, 1, 2, 3])]
)
def test_who_talks_across_the_nodes(
    comm: Communicator, name: str, talk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_on_nodes(name, [2, comm.size - 2]) as made:
        inter, lengths = made.groups.inter, []
        all_reduce = inter.all_reduce

        def noted(buffer: np.ndarray, *args: Any) -> None:
            lengths.append(buffer.size)
            all_reduce(buffer, *args)

        monkeypatch.setattr(inter, 'all_reduce', noted)
        model = link_of({'p': np.zeros(50_000)})
        model.p.grad = np.full(50_000, comm.rank + 1.0)
        made.multi_node_mean_grad(model)
        np.testing.assert_allclose(model.p.grad, (comm.size + 1) / 2, rtol=1e-15)
        everyone = comm.allgather_obj(sum(lengths))
    assert [rank for rank, length in enumerate(everyone) if length] == talk
    assert sum(everyone[:2]) == 50_000  # each node sends every number once
