"""Snapshots of any grid go on in any other, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chainer.training import get_trigger

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MissingDataError
from tests.links.training import wholes
from tests.recipes import recipes
from tests.recipes.running import alone, document, session, shapes
from tests.recipes.test_training import assert_agree


@pytest.mark.parametrize('name', ['rules', 'convnet'])
def test_any_grid_goes_on_in_any_other(comm: Communicator, shared_path: Path, name: str) -> None:
    """With dropout: the random states are those of one process, too."""
    expected = alone(document(recipes.ALL[name]))
    del expected[0]['curve']
    snapshot = {'file': str(shared_path / 'sub' / 'snapshot.npz')}
    found = document(recipes.ALL[name], snapshot=snapshot)
    grids = shapes(comm.size)
    for shape, other in zip(grids, grids[1:] + grids[:1], strict=True):
        with session(found, comm, shape) as first:
            first.trainer.stop_trigger = get_trigger((1, 'epoch'))
            first.run()
        with session(document(recipes.ALL[name], snapshot=snapshot), comm, other) as second:
            np.random.seed(comm.rank)  # the file's states count
            second.resume(snapshot['file'])
            assert second.trainer.updater.epoch == 1
            results = second.run()
            state = wholes(second.trainer)
        state = {k: v for k, v in state.items() if k.startswith('updater/')}
        assert_agree((state, results), expected, 1e-9)


def test_the_file_is_that_of_one_process(comm: Communicator, shared_path: Path) -> None:
    files = {}
    for shape in shapes(comm.size):
        path = shared_path / f'{shape}.npz'
        with session(document(recipes.MLP, snapshot={'file': str(path)}), comm, shape) as made:
            made.run()
        with np.load(path, allow_pickle=True) as file:
            files[shape] = {name: file[name] for name in file.files}
    path = shared_path / f'alone{comm.rank}.npz'
    with mnx.create_communicator('local') as one:
        with session(document(recipes.MLP, snapshot={'file': str(path)}), one, (1, 1)) as made:
            made.run()
    with np.load(path, allow_pickle=True) as file:
        for found in files.values():
            assert found.keys() == set(file.files)
            for name in file.files:
                assert found[name].shape == file[name].shape, name
            np.testing.assert_array_equal(found['mnx/random'], file['mnx/random'])
            assert 'updater/model:main/network/dense1/W' in found


def test_a_missing_snapshot(comm: Communicator) -> None:
    with session(document(recipes.MLP), comm, (1, comm.size)) as made:
        with pytest.raises(MissingDataError, match='no file'):
            made.resume('nothing.npz')


@pytest.mark.parametrize('change', ['units', 'dtype'])
def test_another_size_or_precision_changes_nothing(
    comm: Communicator, shared_path: Path, change: str
) -> None:
    snapshot = {'file': str(shared_path / 'snapshot.npz')}
    with session(document(recipes.MLP, snapshot=snapshot), comm, (1, comm.size)) as made:
        made.run()
    text, changes, reason = recipes.MLP, {'snapshot': None}, 'has dtype float64, and here float32'
    if change == 'units':
        text, reason = text.replace('units: 33', 'units: 32'), r'has shape \((17, )?33'
    else:
        changes['dtype'] = 'float32'
    with session(document(text, **changes), comm, (1, comm.size)) as made:
        before = [param.array.tobytes() for param in made.model.params()]
        with pytest.raises(ArgumentError, match=reason):
            made.resume(snapshot['file'])
        assert [param.array.tobytes() for param in made.model.params()] == before
        made.run()  # as if nothing had been


def test_a_snapshot_of_another_recipe(comm: Communicator, shared_path: Path) -> None:
    snapshot = {'file': str(shared_path / 'snapshot.npz')}
    with session(document(recipes.MLP, snapshot=snapshot), comm, (1, comm.size)) as made:
        made.run()
    with session(document(recipes.CONVNET, snapshot=snapshot), comm, (1, comm.size)) as made:
        with pytest.raises(ArgumentError, match='does not fit this trainer'):
            made.resume(snapshot['file'])
