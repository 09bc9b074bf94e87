"""Every grid of ranks trains what one process trains; what they hold and send is what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError
from mnx.recipes import describe, schema, training
from mnx.recipes.document import parse
from mnx.recipes.plan import plan
from mnx.testing import assert_replicated, relative_difference
from tests.links.counting import counting
from tests.links.training import split_params
from tests.recipes import recipes
from tests.recipes.running import EXAMPLES, alone, document, session, shapes, train

SHORTER: dict[str, dict[str, Any]] = {
    'mlp.yaml': {'epochs': 4},
    'convnet.yaml': {'epochs': 2, 'data': {'name': 'digits', 'fraction': 0.15}},
}


def text_of(name: str) -> str:
    return recipes.ALL[name] if name in recipes.ALL else (EXAMPLES / name).read_text()


def assert_agree(found: Any, expected: Any, rtol: float) -> None:
    """Compare all that would be saved, and what was reported."""
    (state, results), (expected_state, expected_results) = found, expected
    assert state.keys() == expected_state.keys()
    for name, value in expected_state.items():
        if value.dtype.kind == 'f':
            assert relative_difference(state[name], value) <= rtol, name
        elif value.dtype.kind != 'O':
            np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert results.keys() == expected_results.keys()
    for name, value in expected_results.items():
        exactly = name.endswith(('accuracy', 'misclassification', 'top_5'))
        assert results[name] == pytest.approx(value, rel=1e-15 if exactly else rtol), name


@pytest.mark.parametrize('name', [*recipes.ALL, 'mlp.yaml', 'convnet.yaml'])
def test_every_grid_trains_as_one_process(comm: Communicator, name: str) -> None:
    found = document(text_of(name), dtype='float64', snapshot=None, **SHORTER.get(name, {}))
    expected = alone(found)
    for shape in shapes(comm.size):
        assert_agree(train(found, comm, shape), expected, 0 if comm.size == 1 else 1e-9)


@pytest.mark.parametrize('partition', ['output', 'input', 'pairs'])
def test_every_partition_trains_as_one_process(comm: Communicator, partition: str) -> None:
    found = document(recipes.MLP, partition=partition)
    assert_agree(train(found, comm, (1, comm.size)), alone(found), 1e-9)


def test_float32_agrees_to_its_precision(comm: Communicator) -> None:
    found = document(text_of('mlp.yaml'), epochs=12)  # 136 steps
    expected = alone(found)
    for shape in {(1, comm.size), (comm.size, 1)}:
        state, results = train(found, comm, shape)
        for name, value in expected[0].items():
            if name.endswith(('/W', '/b')):
                assert relative_difference(state[name], value) <= 1e-3, name
        assert results['test/accuracy'] == pytest.approx(expected[1]['test/accuracy'], abs=2e-3)


def test_it_is_the_training_that_one_writes_by_hand(comm: Communicator) -> None:
    state, results = train(document(text_of('mlp.yaml'), dtype='float64'), comm, (comm.size, 1))
    images = mnx.datasets.load_images('digits')
    np.random.seed(0)
    with chainer.using_config('dtype', np.float64):
        init = chainer.initializers.GlorotUniform()
        layers = L.Linear(64, 101, initialW=init), F.relu, L.Linear(101, 10, initialW=init)
        model = L.Classifier(chainer.Sequential(*layers))
        optimizer = chainer.optimizers.MomentumSGD(0.1, 0.9).setup(model)
        iterator = chainer.iterators.SerialIterator(images.train, 128)
        while iterator.epoch < 15:
            x, t = chainer.dataset.concat_examples(iterator.next())
            optimizer.update(model, x.astype('f8'), t)
        x, t = chainer.dataset.concat_examples(images.test)
        with chainer.using_config('train', False):
            accuracy = F.accuracy(model.predictor(x.astype('f8')), t)
    for mine, its in (('dense1', 0), ('dense2', 2)):
        found = state[f'updater/model:main/network/{mine}/W']
        assert relative_difference(found, model.predictor[its].W.array) <= 1e-9
    assert results['test/accuracy'] == pytest.approx(float(accuracy.array), rel=1e-15)
    assert results['test/accuracy'] >= 0.97


# --- what is held and sent ------------------------------------------------------------------------

B = 31  # samples in a batch
NUMBER = 8  # bytes


def second_step(text: str, comm: Communicator, shape: tuple[int, int], **changes: Any) -> Any:
    """Return what the ranks of a grid of one row or column send in one update, and the rest."""
    found = document(text, **changes)
    counted, log = counting(comm)
    with session(found, counted, shape) as made, chainer.using_config('dtype', np.float64):
        made.trainer.updater.update()
        log.clear()
        made.trainer.updater.update()
        sent = list(log)
    counted.finalize()
    recipe = schema.validate(found)
    layers = plan(recipe, tuple(recipe.data.shape or (1, 8, 8)), 10)
    said = describe.holding(recipe, layers, comm.rank, *shape)
    return made, sent, said


PAIRS = [('all_reduce', 17), ('all_gather', 10), ('all_reduce', 17)]
OF_A_STEP = {
    'output': [('all_gather', n) for n in (33, 17, 10)] + [('all_reduce', n) for n in (17, 33)],
    'input': [('all_reduce', n) for n in (33, 17, 10)] + [('all_gather', n) for n in (17, 33)],
    # dense1 and dense2 are a pair; an activation of its own leaves dense3 alone
    'pairs': PAIRS,
}


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('partition', OF_A_STEP)
def test_a_model_in_parts_sends_activations(comm: Communicator, partition: str) -> None:
    _, sent, said = second_step(recipes.MLP, comm, (1, comm.size), partition=partition)
    assert sent == [(call, n * B * NUMBER) for call, n in OF_A_STEP[partition]]
    assert said.activations == sum(nbytes for _, nbytes in sent) // NUMBER
    assert (said.gradients, said.statistics) == (0, 0)


@pytest.mark.needs_ranks(2)
@pytest.mark.parametrize('name', recipes.ALL)
def test_what_is_sent_is_what_was_said(comm: Communicator, name: str) -> None:
    for shape in ((1, comm.size), (comm.size, 1)):
        _, sent, said = second_step(recipes.ALL[name], comm, shape)
        calls = [call for call, _ in sent if call not in ('all_reduce', 'all_gather')]
        assert calls == []
        clipping = 1 if name == 'rules' and shape[0] == 1 else 0  # the norm
        total = sum(nbytes for _, nbytes in sent) // NUMBER
        assert total == said.activations + said.statistics + said.gradients + clipping


@pytest.mark.needs_ranks(2)
def test_batches_in_parts_send_gradients_and_nothing_else(comm: Communicator) -> None:
    made, sent, said = second_step(recipes.MLP, comm, (comm.size, 1))
    n_params = sum(p.size for p in made.model.params())
    assert sum(nbytes for _, nbytes in sent) == n_params * NUMBER
    assert (said.gradients, said.activations) == (n_params, 0)


def test_parts_add_up_to_the_whole(comm: Communicator) -> None:
    made, _, said = second_step(recipes.MLP, comm, (1, comm.size))
    mine = sum(p.size for p in made.model.params())
    state = sum(p.update_rule.state['v'].size for p in made.model.params())
    assert (mine, state) == (said.parameters, said.state)
    whole = 64 * 33 + 33 + 33 * 17 + 17 + 17 * 10
    assert sum(comm.allgather_obj(mine)) == whole
    assert len(list(split_params(made.model))) == (5 if comm.size > 1 else 0)
    assert max(comm.allgather_obj(mine)) <= whole / comm.size + 64 + 33 + 17 + 2  # a row of each


def test_biases_of_the_input_partition_are_on_all_ranks(comm: Communicator) -> None:
    made, _, said = second_step(recipes.MLP, comm, (1, comm.size), partition='input')
    mine = sum(p.size for p in made.model.params())
    assert mine == said.parameters
    weights = 64 * 33 + 33 * 17 + 17 * 10
    assert sum(comm.allgather_obj(mine)) == weights + comm.size * (33 + 17)


def test_what_is_whole_is_equal_on_all_ranks(comm: Communicator) -> None:
    found = document(recipes.CONVNET)
    for shape in ((1, comm.size), (comm.size, 1)):
        with session(found, comm, shape) as made:
            made.run()
            network = made.model.network
            for name in ('convolution1', 'batch_normalization1'):
                assert_replicated(comm, network[name])


# --- data and reports -----------------------------------------------------------------------------


def test_only_some_of_the_samples(comm: Communicator) -> None:
    found = document(recipes.MLP, data={'name': 'digits', 'fraction': 0.1})
    samples = training.load(schema.validate(found), found, comm)
    assert (len(samples.train), len(samples.test)) == (144, 355)


def test_a_batch_smaller_than_its_parts(comm: Communicator) -> None:
    found = parse(recipes.MLP, 'small.yaml')
    recipe = schema.validate(found)
    with pytest.raises(ArgumentError, match=r'^small.yaml:4: batch_size: expected 32 or more'):
        training.check(recipe, found, 32, 1442)
    with pytest.raises(ArgumentError, match=r'^small.yaml:4: batch_size: expected 30 or fewer'):
        training.check(recipe, found, 1, 30)
    training.check(recipe, found, 31, 31)


def test_a_missing_file_is_an_error_of_all_ranks(comm: Communicator) -> None:
    with pytest.raises(ArgumentError, match=r'nothing\.yaml: cannot be read'):
        training.read('nothing.yaml', comm)


def test_a_wrong_file_is_the_same_error_on_all_ranks(comm: Communicator, shared_path: Path) -> None:
    path = shared_path / 'wrong.yaml'
    if comm.rank == 0:
        path.write_text(recipes.MLP.replace('units: 17', 'units: 1.5'))
    comm.barrier()
    with pytest.raises(ArgumentError) as caught:
        training.read(str(path), comm)
    assert set(comm.allgather_obj(str(caught.value))) == {
        f'{path}:9: layers[1].units: expected a valid integer, but got 1.5'
    }


def test_missing_data_are_told_by_line(comm: Communicator, shared_path: Path) -> None:
    found = document(recipes.MLP, data={'folder': str(shared_path / 'nothing')})
    with pytest.raises(ArgumentError, match=r'^recipe\.yaml:3: data\.folder: .*there is no folder'):
        training.load(schema.validate(found), found, comm)


def test_where_no_row_can_be_written(comm: Communicator, shared_path: Path) -> None:
    training.check_output(str(shared_path / 'rows'), comm)
    with pytest.raises(ArgumentError, match=r'--output .*: cannot be written'):
        training.check_output(str(shared_path / 'nothing' / 'rows'), comm)


def test_rows_are_appended(comm: Communicator, shared_path: Path) -> None:
    for i in range(2):
        training.append_row(str(shared_path / 'rows'), {'i': i}, comm)
    assert (shared_path / 'rows').read_text() == '{"i": 0}\n{"i": 1}\n'
