"""Files of parallel links are those of one process, and load on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import serializers, training

import mnx
from mnx.communicators import Communicator
from mnx.errors import ArgumentError, MismatchError, MnxError
from mnx.links import ParallelLinear, save_hdf5, save_npz
from tests.links.training import assert_equal_wholes, batches, seeded, train, wholes


class Net(chainer.Chain):
    """Chainer keeps its children in a set, whose order is another one on each rank."""

    def __init__(self, comm: Communicator | None, lazy: bool = False) -> None:
        super().__init__()
        sizes = [None if lazy else n for n in (5, 7, 6)]
        with self.init_scope():
            if comm is None:
                self.first = L.Linear(sizes[0], 7)
                self.second = L.Linear(sizes[1], 6)
                self.third = L.Linear(sizes[2], 3)
            else:
                self.first = ParallelLinear(sizes[0], 7, comm, gather_output=False)
                self.second = ParallelLinear(sizes[1], 6, comm, 'input', input_is_split=True)
                self.third = ParallelLinear(sizes[2], 3, comm)
            self.norm = L.BatchNormalization(6)

    def forward(self, x):
        return self.third(self.norm(F.tanh(self.second(F.tanh(self.first(x))))))


DATA = batches(4, (5,), 3)
FORMATS = {
    'npz': (save_npz, serializers.load_npz),
    'hdf5': (save_hdf5, serializers.load_hdf5),
}


@pytest.fixture(params=FORMATS)
def formats(request):
    if request.param == 'hdf5':
        pytest.importorskip('h5py')
    return FORMATS[request.param]


def trained(comm: Communicator | None, n: int = 2) -> tuple[chainer.Link, chainer.Optimizer]:
    model, optimizer = seeded(lambda: Net(comm)), chainer.optimizers.Adam()
    train(model, DATA[:n], optimizer)
    return model, optimizer


def fresh(comm: Communicator | None) -> tuple[chainer.Link, chainer.Optimizer]:
    model = seeded(lambda: Net(comm), 99)
    return model, chainer.optimizers.Adam().setup(model)


def test_a_training_goes_on_in_plain_chainer(
    comm: Communicator, shared_path: Path, formats
) -> None:
    save, load = formats
    names = [str(shared_path / name) for name in ('model', 'optimizer')]
    for name, obj in zip(names, trained(comm), strict=True):
        save(name, obj, comm)
    model, optimizer = seeded(lambda: Net(None), 99), chainer.optimizers.Adam()
    optimizer.setup(model)
    for name, obj in zip(names, (model, optimizer), strict=True):
        load(name, obj)
    expected = trained(None, 2)
    assert_equal_wholes(model, expected[0], 1e-12)
    assert_equal_wholes(optimizer, expected[1], 1e-12)


def test_a_training_of_plain_chainer_goes_on(
    comm: Communicator, shared_path: Path, formats
) -> None:
    _, load = formats
    names = [str(shared_path / name) for name in ('model', 'optimizer')]
    if comm.rank == 0:
        plain = serializers.save_npz if load is serializers.load_npz else serializers.save_hdf5
        for name, obj in zip(names, trained(None), strict=True):
            plain(name, obj)
    comm.barrier()
    model, optimizer = fresh(comm)
    for name, obj in zip(names, (model, optimizer), strict=True):
        load(name, obj)
    expected = trained(None)
    assert_equal_wholes(model, expected[0], 0)
    assert_equal_wholes(optimizer, expected[1], 0)
    for one in ((model, optimizer), expected):
        step(*one)
    assert_equal_wholes(model, expected[0], 1e-12)


def step(model, optimizer):
    for x, t in DATA[2:]:
        model.cleargrads()
        F.softmax_cross_entropy(model(x), t).backward()
        optimizer.update()


@pytest.mark.needs_ranks(2)
def test_on_another_number_of_ranks(comm: Communicator, shared_path: Path) -> None:
    model, _ = trained(comm)
    save_npz(str(shared_path / 'model'), model, comm)
    expected = wholes(model)
    fewer = comm.group(range(comm.size - 1))
    if fewer is not None:
        found = seeded(lambda: Net(fewer), 99)
        serializers.load_npz(str(shared_path / 'model'), found)
        found = wholes(found)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
        fewer.finalize()


def test_into_parameters_without_values(comm: Communicator, shared_path: Path) -> None:
    model, _ = trained(comm)
    save_npz(str(shared_path / 'model'), model, comm)
    found = seeded(lambda: Net(comm, lazy=True), 99)
    with chainer.using_config('dtype', np.float64):
        serializers.load_npz(str(shared_path / 'model'), found)
    assert_equal_wholes(found, model, 0)
    x = DATA[0][0]
    with chainer.using_config('train', False):
        np.testing.assert_array_equal(found(x).array, model(x).array)


def test_parameters_without_values_are_saved_as_such(comm: Communicator, shared_path: Path) -> None:
    save_npz(str(shared_path / 'model'), Net(comm, lazy=True), comm)
    found = Net(None, lazy=True)
    serializers.load_npz(str(shared_path / 'model'), found)
    assert found.first.W.array is None


def test_another_model(comm: Communicator, shared_path: Path) -> None:
    link = seeded(lambda: ParallelLinear(3, 4, comm, nobias=True))
    save_npz(str(shared_path / 'link'), link, comm)
    other = seeded(lambda: ParallelLinear(3, 5, comm, nobias=True))
    with pytest.raises(ArgumentError, match=r'W does not fit.*\(5, 3\), but got \(4, 3\)'):
        serializers.load_npz(str(shared_path / 'link'), other)


def test_snapshot_of_a_trainer(comm: Communicator, shared_path: Path) -> None:
    """One file for all ranks; its model is that of one process, and the training goes on."""
    whole = run(comm, shared_path / 'whole', 4)
    run(comm, shared_path / 'part', 2)
    rest = run(comm, shared_path / 'part', 4, resume=shared_path / 'part' / 'snapshot')
    assert_equal_wholes(rest, whole, 0)
    plain = seeded(lambda: Net(None))
    serializers.load_npz(
        str(shared_path / 'part' / 'snapshot'), plain, path='updater/model:main/predictor/'
    )
    assert_equal_wholes(plain, whole.predictor, 0)


def run(comm: Communicator, out: Path, epochs: int, resume: Path | None = None) -> chainer.Link:
    model = seeded(lambda: L.Classifier(Net(comm)))
    optimizer = chainer.optimizers.Adam().setup(model)
    data = [(x, t) for x, t in zip(*DATA[0], strict=True)]
    updater = training.updaters.StandardUpdater(
        chainer.iterators.SerialIterator(data, 6), optimizer
    )
    trainer = training.Trainer(updater, (epochs, 'epoch'), out=str(out))
    trainer.extend(mnx.extensions.snapshot(comm, 'snapshot'))
    if resume is not None:
        mnx.extensions.resume(resume, trainer, comm)
    trainer.run()
    return model


def test_copies(comm: Communicator) -> None:
    """Of Link.copy and copy.deepcopy: parts of their own wholes."""
    model, _ = trained(comm)
    for mode in ('share', 'copy'):
        copied = model.copy(mode)
        assert_equal_wholes(copied, model, 0)
    copied.first.W.array[...] += 1
    assert not np.array_equal(wholes(copied)['first/W'], wholes(model)['first/W'])


@pytest.mark.needs_ranks(2)
def test_rank_0_alone(comm: Communicator, shared_path: Path) -> None:
    model = seeded(lambda: Net(comm))

    def save() -> None:
        if comm.rank == 0:
            serializers.save_npz(str(shared_path / 'model'), model)
        else:
            comm.barrier()

    with pytest.raises(MismatchError, match=r'all ranks must, see mnx\.links\.save_npz'):
        save()


@pytest.mark.parametrize('save', [save_npz, save_hdf5])
def test_a_file_that_cannot_be_written(comm: Communicator, save) -> None:
    if save is save_hdf5:
        pytest.importorskip('h5py')
    model = seeded(lambda: Net(comm))
    with pytest.raises(OSError if comm.rank == 0 else MnxError, match='no/such/folder'):
        save('no/such/folder/model', model, comm)
    comm.barrier()  # in step again
