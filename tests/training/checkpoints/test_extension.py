import functools
import json
import os
import random
import re
import resource
import shutil
import subprocess
from collections import Counter

import chainer
import chainer.links as L
import numpy as np
import pytest
from chainer import training
from chainer.iterators import MultiprocessIterator, MultithreadIterator, SerialIterator

import mnx
from mnx.errors import ArgumentError, DataError, DtypeError, MismatchError, RemoteError
from mnx.extensions import Checkpoint, resume
from mnx.training.checkpoints import manifest
from mnx.training.checkpoints.positions import InOrder
from tests.training.checkpoints.training import N, build, parameters, sets_in


@pytest.fixture(autouse=True)
def leave_generators_alone():
    states = np.random.get_state(), random.getstate()
    yield
    np.random.set_state(states[0])
    random.setstate(states[1])


def on_root_only(comm, function):
    """Let rank 0 do something to files that all others are done with."""
    comm.barrier()
    if comm.rank == 0:
        function()
    comm.barrier()


class TestGoingOn:
    @pytest.mark.parametrize('stopped_at', [1, 5])
    @pytest.mark.parametrize('shuffle', [None, False], ids=['shuffled', 'in order'])
    def test_with_the_same_bits(self, comm, shared_path, stopped_at, shuffle):
        whole = build(comm, shared_path / 'whole', until=(2, 'epoch'), shuffle=shuffle)
        whole.run()
        expected = np.random.rand(), random.random()

        out = shared_path / 'part'
        build(comm, out, until=(stopped_at, 'iteration'), shuffle=shuffle).run()
        rest = build(comm, out, until=(2, 'epoch'), seed=99, shuffle=shuffle)
        resumed = rest.checkpoint.resume(rest)
        assert (resumed.iteration, resumed.skipped) == (stopped_at, [])
        assert resumed.path == out / 'checkpoint' / f'{stopped_at:06d}_iteration_{stopped_at}'
        rest.run()
        assert parameters(rest) == parameters(whole)
        assert (np.random.rand(), random.random()) == expected
        assert rest.updater.iteration == whole.updater.iteration

    def test_nothing_to_go_on_from(self, comm, shared_path):
        trainer = build(comm, shared_path)
        before = parameters(trainer)
        resumed = trainer.checkpoint.resume(trainer)
        assert not resumed
        assert (resumed.iteration, str(resumed)) == (None, 'start anew')
        assert parameters(trainer) == before

    def test_each_rank_in_a_folder_of_its_own(self, comm, shared_path):
        """As on the disks of several machines."""
        mine = shared_path / f'disk_{comm.rank}'
        whole = build(comm, shared_path / 'whole', until=(2, 'epoch'))
        whole.run()
        build(comm, shared_path, until=(3, 'iteration'), path=mine).run()
        assert sets_in(mine)[-1] == '000003_iteration_3'
        names = {path.name for path in (mine / 'checkpoint' / sets_in(mine)[-1]).iterdir()}
        assert names == {f'rank_{comm.rank}.npz', 'manifest.json'}
        rest = build(comm, shared_path, until=(2, 'epoch'), seed=9, path=mine)
        assert rest.checkpoint.resume(rest).iteration == 3
        rest.run()
        assert parameters(rest) == parameters(whole)

    def test_ranks_that_train_different_things(self, comm, shared_path):
        def trainer_of_my_own(fill):
            model = chainer.Sequential(L.Linear(comm.rank + 1, 2, initialW=fill))
            optimizer = chainer.optimizers.SGD().setup(model)
            iterator = SerialIterator(list(range(5 + comm.rank)), 2)
            updater = training.updaters.StandardUpdater(iterator, optimizer)
            return training.Trainer(updater, (1, 'iteration'), out=str(shared_path)), model

        trainer, model = trainer_of_my_own(comm.rank + 10)
        trainer._start_at = 0
        Checkpoint(comm)(trainer)
        order = trainer.updater.get_iterator('main')._state.order
        other, other_model = trainer_of_my_own(-1)
        assert Checkpoint(comm).resume(other)
        np.testing.assert_array_equal(other_model[0].W.array, model[0].W.array)
        np.testing.assert_array_equal(other.updater.get_iterator('main')._state.order, order)

    def test_a_split_model(self, comm, shared_path):
        """Saved as a whole: what a rank has depends on their number, what is on the disk not."""

        def make(comm, fill):
            np.random.seed(fill)
            link = mnx.links.ParallelLinear(3, 8, comm)
            optimizer = chainer.optimizers.SGD().setup(link)
            iterator = SerialIterator(np.arange(6.0), 2, shuffle=False)
            updater = training.updaters.StandardUpdater(iterator, optimizer)
            return training.Trainer(updater, (1, 'iteration'), out=str(shared_path)), link

        trainer, link = make(comm, 5)
        trainer._start_at = 0
        Checkpoint(comm)(trainer)
        differs = manifest.read(shared_path / 'checkpoint/000001_iteration_0').differs
        assert not [key for key in differs if 'model:' in key]
        whole = link.W.whole_of()
        for size in {comm.size, max(1, comm.size - 1)}:
            group = comm.group(range(size))
            if group is not None:
                other, other_link = make(group, 6)
                Checkpoint(group).resume(other)
                np.testing.assert_array_equal(other_link.W.whole_of(), whole)


class TestWhatIsWritten:
    def test_the_newest_stay(self, comm, shared_path):
        build(comm, shared_path, until=(4, 'iteration'), keep=2).run()
        assert sets_in(shared_path) == ['000003_iteration_3', '000004_iteration_4']
        files = {path.name for path in (shared_path / 'checkpoint/000004_iteration_4').iterdir()}
        assert files == {'manifest.json', *(f'rank_{rank}.npz' for rank in range(comm.size))}

    def test_what_is_equal_is_written_once_and_without_pickles(self, comm, shared_path):
        build(comm, shared_path, until=(1, 'iteration')).run()
        for rank in range(comm.size):
            path = shared_path / f'checkpoint/000001_iteration_1/rank_{rank}.npz'
            with np.load(path, allow_pickle=False) as file:
                values = {key: file[key] for key in file.files}
            assert 'mnx/random' in values or comm.size == 1
            weights = 'updater/model:main/predictor/l1/W'
            assert (weights in values) == (rank == 0)
            assert 'updater/iterator:main/order' in values

    def test_python_objects_are_refused(self, comm, shared_path):
        trainer = build(comm, shared_path, until=(1, 'iteration'))
        model = trainer.updater.get_optimizer('main').target
        if comm.rank == comm.size - 1:
            model.add_persistent('odd', np.array([{}], object))
        with pytest.raises(DtypeError, match='model:main/odd is a Python object'):
            trainer.run(show_loop_exception_msg=False)

    @pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'complex64', 'bool'])
    def test_dtypes(self, comm, shared_path, dtype):
        ml_dtypes = pytest.importorskip('ml_dtypes')
        dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        trainer = build(comm, shared_path, until=(1, 'iteration'))
        model = trainer.updater.get_optimizer('main').target
        value = np.arange(4).reshape(2, 2).T.astype(dtype)
        model.add_persistent('mine', value)
        model.add_persistent('nothing', None)
        trainer.run()
        other = build(comm, shared_path)
        model = other.updater.get_optimizer('main').target
        model.add_persistent('mine', np.zeros((2, 2), dtype))
        model.add_persistent('nothing', None)
        other.checkpoint.resume(other)
        np.testing.assert_array_equal(model.mine, value, strict=True)
        assert model.nothing is None

    def test_sets_of_another_training_stay(self, comm, shared_path, capfd):
        build(comm, shared_path, until=(2, 'iteration'), keep=1).run()
        build(comm, shared_path, until=(3, 'iteration'), keep=1).run()
        assert sets_in(shared_path) == ['000002_iteration_2', '000005_iteration_3']
        told = capfd.readouterr().err
        assert ('holds 1 sets of a training' in told) == (comm.rank == 0)
        again = build(comm, shared_path, until=(5, 'iteration'), keep=1)
        assert again.checkpoint.resume(again).iteration == 3
        again.run()
        comm.barrier()
        assert [name[-1] for name in sets_in(shared_path)] == ['2', '5']


def flip(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)


def from_the_future(path):
    text = json.loads(path.read_text())
    text['version'] = 2
    path.write_text(json.dumps(text))


def lie_about_the_size(path):
    text = json.loads(path.read_text())
    text['size'] += 1
    path.write_text(json.dumps(text))


def in_float64(model):
    for param in model.params():
        param.array = param.array.astype(np.float64)


LAST = 'rank_LAST.npz'
DAMAGES = [
    ('rank_0.npz', flip, 'rank_0.npz is damaged'),
    (LAST, flip, f'{LAST} is damaged'),
    (LAST, lambda p: flip(p, 0), f'{LAST} is damaged'),
    (LAST, lambda p: flip(p, 0.999), f'{LAST} is damaged'),
    ('rank_0.npz', lambda p: os.truncate(p, p.stat().st_size - 1), 'bytes, not'),
    (LAST, lambda p: os.truncate(p, 0), f'{LAST} has 0 bytes'),
    ('rank_0.npz', os.unlink, 'rank_0.npz is missing'),
    (LAST, os.unlink, f'{LAST} is missing'),
    ('manifest.json', flip, r'manifest.json is (damaged|cut short)'),
    ('manifest.json', lie_about_the_size, 'manifest.json is damaged'),
    ('manifest.json', lambda p: os.truncate(p, p.stat().st_size // 2), 'cut short'),
    ('manifest.json', lambda p: p.write_text('[1]'), 'none of mnx'),
    ('manifest.json', from_the_future, 'format 2, and this mnx reads 1'),
]
IDS = [f'{i}-{name}' for i, (name, _, _) in enumerate(DAMAGES)]


class TestDamage:
    def damage(self, comm, out, name, file, function):
        file = file.replace('LAST', str(comm.size - 1))
        on_root_only(comm, lambda: function(out / 'checkpoint' / name / file))

    @pytest.mark.parametrize(('file', 'function', 'reason'), DAMAGES, ids=IDS)
    def test_the_set_before_is_taken(self, comm, shared_path, file, function, reason, capfd):
        build(comm, shared_path, until=(2, 'iteration')).run()
        self.damage(comm, shared_path, '000002_iteration_2', file, function)
        trainer = build(comm, shared_path, until=(4, 'iteration'), seed=9, keep=2)
        resumed = trainer.checkpoint.resume(trainer)
        assert resumed.iteration == 1
        (skipped,) = resumed.skipped
        reason = reason.replace('LAST', str(comm.size - 1))
        assert skipped.name == '000002_iteration_2'
        assert re.search(reason, skipped.reason)
        told = capfd.readouterr().err
        assert ('skipped 000002_iteration_2: ' in told) == (comm.rank == 0)
        trainer.run()
        whole = build(comm, shared_path / 'whole', until=(4, 'iteration'))
        whole.run()
        assert parameters(trainer) == parameters(whole)
        # the damaged one does not count, and is not thrown away
        assert sets_in(shared_path) == [
            '000002_iteration_2',
            '000004_iteration_3',
            '000005_iteration_4',
        ]

    @pytest.mark.parametrize(('file', 'function', 'reason'), DAMAGES, ids=IDS)
    def test_the_only_set_is_an_error(self, comm, shared_path, file, function, reason):
        build(comm, shared_path, until=(1, 'iteration')).run()
        self.damage(comm, shared_path, '000001_iteration_1', file, function)
        trainer = build(comm, shared_path, seed=9)
        before = parameters(trainer)
        with pytest.raises(DataError, match=reason.replace('LAST', str(comm.size - 1))):
            trainer.checkpoint.resume(trainer)
        assert parameters(trainer) == before
        assert trainer.updater.iteration == 0

    def test_every_byte_counts(self, comm, shared_path):
        """No flip of a byte, anywhere in a set, goes unnoticed."""
        build(comm, shared_path, until=(1, 'iteration')).run()
        folder = shared_path / 'checkpoint/000001_iteration_1'
        trainer = build(comm, shared_path, seed=9)
        source = np.random.RandomState(0)
        for where in source.rand(20):
            name = f'rank_{int(where * 1000) % comm.size}.npz'
            flip_it = functools.partial(flip, folder / name, where)
            on_root_only(comm, flip_it)
            with pytest.raises(DataError, match=f'{name} is damaged'):
                trainer.checkpoint.resume(trainer)
            on_root_only(comm, flip_it)
        assert trainer.checkpoint.resume(trainer).iteration == 1

    def test_an_unfinished_first_set_is_no_error(self, comm, shared_path):
        build(comm, shared_path, until=(1, 'iteration')).run()
        self.damage(comm, shared_path, '000001_iteration_1', 'manifest.json', os.unlink)
        trainer = build(comm, shared_path, until=(1, 'iteration'))
        resumed = trainer.checkpoint.resume(trainer)
        assert not resumed
        assert 'unfinished, without a manifest' in str(resumed)
        trainer.run()
        assert sets_in(shared_path) == ['000002_iteration_1']

    @pytest.mark.needs_ranks(2)
    @pytest.mark.parametrize('what', ['manifest', 'set', 'all'])
    def test_the_disk_of_one_rank(self, comm, shared_path, what):
        mine = shared_path / f'disk_{comm.rank}'
        build(comm, shared_path, until=(2, 'iteration'), path=mine).run()
        comm.barrier()
        name = '000002_iteration_2'
        if comm.rank == 1:
            if what == 'manifest':
                (mine / 'checkpoint' / name / 'manifest.json').unlink()
            else:
                shutil.rmtree(mine / 'checkpoint' / (name if what == 'set' else ''))
        comm.barrier()
        trainer = build(comm, shared_path, path=mine, seed=9)
        if what == 'all':
            with pytest.raises(DataError, match='missing on rank 1'):
                trainer.checkpoint.resume(trainer)
        else:
            resumed = trainer.checkpoint.resume(trainer)
            assert resumed.iteration == 1
            assert ('unfinished' if what == 'manifest' else 'missing on rank 1') in str(resumed)

    @pytest.mark.needs_ranks(2)
    def test_manifests_of_different_sets(self, comm, shared_path):
        """One rank was given the disk of another training."""
        for seed, disk in enumerate('ab'):
            mine = shared_path / f'{disk}_{comm.rank}'
            build(comm, shared_path, until=(1, 'iteration'), seed=seed, path=mine).run()
        mixed = shared_path / ('b_0' if comm.rank == 0 else f'a_{comm.rank}')
        trainer = build(comm, shared_path, path=mixed)
        with pytest.raises(DataError, match='manifests of different sets'):
            trainer.checkpoint.resume(trainer)

    def test_another_model(self, comm, shared_path):
        build(comm, shared_path, until=(2, 'iteration')).run()
        trainer = build(comm, shared_path, n_units=6)
        before = parameters(trainer)
        with pytest.raises(ArgumentError, match=r'has shape \(.*5.*\), and here \(.*6.*\)'):
            trainer.checkpoint.resume(trainer)
        assert parameters(trainer) == before
        assert trainer.updater.iteration == 0

    @pytest.mark.parametrize(
        ('change', 'reason'),
        [
            (lambda model: delattr(model.predictor, 'l2'), 'l2/W was saved, and is nothing here'),
            (in_float64, 'has dtype float32, and here float64'),
        ],
        ids=['a layer less', 'dtype'],
    )
    def test_a_model_that_would_load_in_part(self, comm, shared_path, change, reason):
        build(comm, shared_path, until=(2, 'iteration')).run()
        trainer = build(comm, shared_path, seed=9)
        optimizer = trainer.updater.get_optimizer('main')
        change(optimizer.target)
        before = parameters(trainer)
        with pytest.raises(ArgumentError, match=reason):
            trainer.checkpoint.resume(trainer)
        assert parameters(trainer) == before

    @pytest.mark.parametrize('name', ['SGD', 'MomentumSGD'])
    def test_another_optimizer(self, comm, shared_path, name):
        """SGD needs less than Adam has saved; MomentumSGD has a `v`, too, of other meaning."""
        build(comm, shared_path, until=(2, 'iteration')).run()
        trainer = build(comm, shared_path, seed=9, optimizer=getattr(chainer.optimizers, name)())
        before = parameters(trainer)
        with pytest.raises(ArgumentError, match=f'was Adam, and here is {name}'):
            trainer.checkpoint.resume(trainer)
        assert parameters(trainer) == before

    def test_another_trainer_on_one_rank(self, comm, shared_path):
        build(comm, shared_path, until=(2, 'iteration')).run()
        trainer = build(comm, shared_path, seed=9)
        if comm.rank == comm.size - 1:
            log = training.extensions.LogReport()
            trainer.extend(log, name='unknown')
        before = parameters(trainer)
        with pytest.raises(ArgumentError, match='extensions/unknown'):
            trainer.checkpoint.resume(trainer)
        assert parameters(trainer) == before


class TestFailingDisks:
    def test_a_file_that_may_not_grow(self, comm, shared_path):
        """The system's own error in the middle of a write, on one rank."""
        trainer = build(comm, shared_path, until=(2, 'iteration'))
        limited = comm.size - 1

        @training.make_extension(trigger=(2, 'iteration'), priority=0)
        def limit(trainer):
            if comm.rank == limited:
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        trainer.extend(limit)
        try:
            with pytest.raises(OSError if comm.rank == limited else RemoteError, match='too large'):
                trainer.run(show_loop_exception_msg=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        comm.barrier()
        assert sets_in(shared_path) == ['000001_iteration_1']  # the rest is cleaned up
        again = build(comm, shared_path, seed=9)
        assert again.checkpoint.resume(again).iteration == 1

    def test_a_full_disk(self, comm, shared_path, request):
        """A real one, of a megabyte."""
        disk = shared_path / 'disk'
        on_root_only(comm, disk.mkdir)
        if not comm.bcast_obj(comm.rank == 0 and mount(disk, '1m')):
            pytest.skip('needs the right to mount a file system')
        request.addfinalizer(lambda: on_root_only(comm, lambda: unmount(disk)))
        trainer = build(comm, shared_path, until=(200, 'iteration'), path=disk, keep=1000)
        with pytest.raises((OSError, RemoteError), match='No space left'):
            trainer.run(show_loop_exception_msg=False)
        comm.barrier()
        sets = sets_in(disk)
        assert trainer.updater.iteration == len(sets) + 1 > 2
        again = build(comm, shared_path, until=(200, 'iteration'), path=disk, keep=1, seed=9)
        resumed = again.checkpoint.resume(again)
        assert (resumed.path.name, resumed.skipped) == (sets[-1], [])
        on_root_only(comm, lambda: shutil.rmtree(disk / 'checkpoint' / sets[0]))
        again.stop_trigger = training.triggers.IntervalTrigger(len(sets) + 3, 'iteration')
        again.run()
        whole = build(comm, shared_path / 'whole', until=(len(sets) + 3, 'iteration'))
        whole.run()
        assert parameters(again) == parameters(whole)

    def test_a_folder_that_is_a_file(self, comm, shared_path):
        trainer = build(comm, shared_path, until=(1, 'iteration'))
        on_root_only(comm, lambda: (shared_path / 'checkpoint').write_text(''))
        with pytest.raises(OSError, match='Not a directory'):
            trainer.run(show_loop_exception_msg=False)


def mount(folder, size):
    command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def unmount(folder):
    subprocess.run(['umount', str(folder)], check=True)


@pytest.mark.parametrize(
    'options', [{'keep': 0}, {'keep': 1.5}, {'name': ''}, {'name': 'a/b'}, {'name': '..'}]
)
def test_arguments_that_make_no_sense(comm, options):
    with pytest.raises(ArgumentError, match='expected'):
        Checkpoint(comm, **options)


@pytest.mark.needs_ranks(2)
def test_all_ranks_must_want_the_same(comm):
    with pytest.raises(MismatchError):
        Checkpoint(comm, keep=3 + comm.rank)


class TestAnotherNumberOfRanks:
    """4 -> 2 -> 3 and the like, on communicators of the first ranks of this run."""

    def groups(self, comm, sizes):
        for size in sizes:
            yield comm.group(range(min(size, comm.size)))

    @pytest.mark.parametrize('shuffle', [None, False], ids=['shuffled', 'in order'])
    @pytest.mark.parametrize(
        'sizes',
        [(4, 2, 3), (2, 3, 1), (1, 2, 4), (3, 2, 2, 3)],
        ids=lambda s: '-'.join(map(str, s)),
    )
    def test_every_example_is_seen_once_per_epoch(self, comm, shared_path, sizes, shuffle):
        seen = []
        for number, group in enumerate(self.groups(comm, sizes)):
            is_last = number == len(sizes) - 1
            if group is not None:
                until = (2, 'epoch') if is_last else (number + 1, 'iteration')
                options = {'batch_size': 12 // group.size, 'shuffle': shuffle, 'seed': number}
                trainer = build(group, shared_path, until=until, **options)
                assert bool(trainer.checkpoint.resume(trainer)) == (number > 0)
                trainer.run()
                seen.append(trainer.seen)
                if is_last:
                    assert trainer.updater.iteration == 2 * N // 12
        counts = Counter(n for numbers in comm.allgather_obj(seen) for ns in numbers for n in ns)
        assert counts == dict.fromkeys(range(N), 2)

    @pytest.mark.parametrize('shuffle', [None, False], ids=['shuffled', 'in order'])
    @pytest.mark.parametrize('kind', [MultithreadIterator, MultiprocessIterator])
    def test_iterators_that_read_ahead(self, comm, shared_path, kind, shuffle, request):
        """Each names its order in another way, or has none."""

        def make(comm):
            data = mnx.scatter_dataset(np.arange(24.0), comm, shuffle=True, seed=0)
            optimizer = chainer.optimizers.SGD().setup(L.Linear(1, 1, initialW=1))
            iterator = kind(data, 12 // comm.size, shuffle=shuffle)
            updater = training.updaters.StandardUpdater(iterator, optimizer)
            return training.Trainer(updater, out=str(shared_path)), iterator

        seen = []
        sizes = [comm.size, max(1, comm.size - 1)]
        for is_last, group in enumerate(self.groups(comm, sizes)):
            if group is not None:
                trainer, iterator = make(group)
                request.addfinalizer(iterator.finalize)
                assert bool(Checkpoint(group).resume(trainer)) == bool(is_last)
                seen += iterator.next()
                trainer._start_at = 0
                Checkpoint(group)(trainer)
        counts = Counter(float(n) for numbers in comm.allgather_obj(seen) for n in numbers)
        assert counts == dict.fromkeys(map(float, range(24)), 1)

    def test_the_replicated_stays_as_it_is(self, comm, shared_path):
        build(comm, shared_path, until=(2, 'iteration')).run()
        group = comm.group([0])
        if group is not None:
            trainer = build(group, shared_path, seed=9)
            resumed = trainer.checkpoint.resume(trainer)
            assert comm.size == 1 or resumed.notes[0] == f'{comm.size} ranks then, 1 now'
            expected = np.load(shared_path / 'checkpoint/000002_iteration_2/rank_0.npz')
            model = trainer.updater.get_optimizer('main').target
            key = 'updater/model:main/predictor/l1/W'
            np.testing.assert_array_equal(model.predictor.l1.W.array, expected[key])
            assert trainer.updater.iteration == 2

    @pytest.mark.needs_ranks(3)
    def test_where_the_number_does_not_divide_it_is_told(self, comm, shared_path):
        first = build(comm, shared_path, until=(3, 'iteration'), batch_size=1, n=13)
        first.run()
        seen = Counter(n for ns in comm.allgather_obj(first.seen) for n in ns)
        group = comm.group(range(comm.size - 1))
        if group is not None:
            trainer = build(group, shared_path, until=(1, 'epoch'), batch_size=1, n=13)
            resumed = trainer.checkpoint.resume(trainer)
            trainer.run()
            (note,) = [note for note in resumed.notes if 'seen again' in note]
            n_again, n_left = map(int, re.findall(r'\d+', note)[:2])
            now = Counter(n for ns in group.allgather_obj(trainer.seen) for n in ns)
            assert sum(now.values()) == n_left + n_again
            assert (seen + now).keys() == set(range(13))

    @pytest.mark.needs_ranks(2)
    def test_data_in_another_order_are_refused(self, comm, shared_path):
        build(comm, shared_path, until=(2, 'iteration')).run()
        group = comm.group([0])
        if group is not None:
            trainer = build(group, shared_path, scatter_seed=2)
            with pytest.raises(ArgumentError, match=r'48 examples, shuffled by .* the same seed'):
                trainer.checkpoint.resume(trainer)
            assert trainer.updater.iteration == 0

    def test_at_the_same_number_it_is_told(self, comm, shared_path):
        build(comm, shared_path, until=(2, 'iteration')).run()
        trainer = build(comm, shared_path, scatter_seed=2)
        (note,) = trainer.checkpoint.resume(trainer).notes
        assert 'give scatter_dataset a seed' in note

    @pytest.mark.needs_ranks(2)
    def test_without_a_common_folder_it_is_an_error(self, comm, shared_path):
        mine = shared_path / f'disk_{comm.rank}'
        build(comm, shared_path, until=(2, 'iteration'), path=mine).run()
        group = comm.group(range(comm.size - 1))
        if group is not None:
            trainer = build(group, shared_path, path=mine)
            with pytest.raises(DataError, match=r'need a folder\s+that all ranks see'):
                trainer.checkpoint.resume(trainer)
        fewer = comm.group(range(comm.size - 1))
        out = shared_path / 'few'
        if fewer is not None:
            build(fewer, out, until=(1, 'iteration'), path=out / f'disk_{comm.rank}').run()
        trainer = build(comm, out, path=out / f'disk_{comm.rank}')
        with pytest.raises(DataError, match=r'need a folder\s+that all ranks see'):
            trainer.checkpoint.resume(trainer)

    @pytest.mark.parametrize('kind', ['multi_node', 'synchronized'])
    def test_iterators_that_are_alike_on_all_ranks(self, comm, shared_path, kind):
        def make(comm, seed):
            np.random.seed(seed + comm.rank)
            optimizer = chainer.optimizers.SGD().setup(L.Linear(1, 1, initialW=1))
            actual = SerialIterator(np.arange(20.0), 2)
            wrap = getattr(mnx.iterators, f'create_{kind}_iterator')
            updater = training.updaters.StandardUpdater(wrap(actual, comm), optimizer)
            return training.Trainer(updater, (1, 'iteration'), out=str(shared_path))

        trainer = make(comm, 0)
        iterator = trainer.updater.get_iterator('main')
        for _ in range(3):
            iterator.next()
        trainer._start_at = 0
        Checkpoint(comm)(trainer)
        expected = [list(iterator.next()) for _ in range(12)]  # into the next epoch
        for size in {comm.size, max(1, comm.size - 1)}:
            group = comm.group(range(size))
            if group is not None:
                other = make(group, 9)
                assert Checkpoint(group).resume(other)
                iterator = other.updater.get_iterator('main')
                assert [list(iterator.next()) for _ in range(12)] == expected

    @pytest.mark.needs_ranks(2)
    def test_different_models_are_refused(self, comm, shared_path):
        def make(comm):
            model = L.Linear(3, 2, initialW=comm.rank)
            optimizer = chainer.optimizers.SGD().setup(model)
            iterator = SerialIterator(list(range(4)), 2, shuffle=False)
            updater = training.updaters.StandardUpdater(iterator, optimizer)
            return training.Trainer(updater, (1, 'iteration'), out=str(shared_path))

        trainer = make(comm)
        trainer._start_at = 0
        Checkpoint(comm)(trainer)
        group = comm.group([0])
        if group is not None:
            with pytest.raises(ArgumentError, match='ranks with different models'):
                Checkpoint(group).resume(make(group))

    @pytest.mark.needs_ranks(2)
    def test_data_that_mnx_did_not_scatter_are_refused(self, comm, shared_path):
        def make(comm):
            np.random.seed(comm.rank)
            optimizer = chainer.optimizers.SGD().setup(L.Linear(3, 2, initialW=1))
            iterator = SerialIterator(list(range(4)), 2)
            updater = training.updaters.StandardUpdater(iterator, optimizer)
            return training.Trainer(updater, (1, 'iteration'), out=str(shared_path))

        trainer = make(comm)
        trainer.updater.get_iterator('main')._state = trainer.updater.get_iterator(
            'main'
        )._state._replace(current_position=comm.rank)
        trainer._start_at = 0
        Checkpoint(comm)(trainer)
        group = comm.group([0])
        if group is not None:
            with pytest.raises(ArgumentError, match="iterator 'main' cannot go on"):
                Checkpoint(group).resume(make(group))

    @pytest.mark.needs_ranks(2)
    def test_borrowed_examples_survive_another_resume(self, comm, shared_path):
        """Resumed by fewer ranks, interrupted again in the same epoch, and resumed alike."""
        build(comm, shared_path, until=(3, 'iteration'), batch_size=1, n=24).run()
        size = comm.size - 1 if comm.size > 2 else 1
        group = comm.group(range(size))
        if group is None:
            return
        options = {'batch_size': 1, 'n': 24, 'seed': 5}
        if group.rank == 0:
            shutil.copytree(shared_path / 'checkpoint', shared_path / 'whole' / 'checkpoint')
        group.barrier()
        whole = build(group, shared_path / 'whole', until=(2, 'epoch'), **options)
        whole.checkpoint.resume(whole)
        whole.run()
        first = build(group, shared_path, until=(5, 'iteration'), **options)
        first.checkpoint.resume(first)
        first.run()
        second = build(group, shared_path, until=(2, 'epoch'), **options)
        assert second.checkpoint.resume(second).iteration == 5
        second.run()
        assert first.seen + second.seen == whole.seen
        assert parameters(second) == parameters(whole)


def test_an_iterator_with_processes(comm, shared_path):
    def run(out, until, go_on=False):
        np.random.seed(3 + comm.rank)
        data = mnx.scatter_dataset(np.arange(24.0, dtype=np.float32)[:, None], comm, seed=0)
        model = L.Classifier(
            L.Linear(1, 1, initialW=1), chainer.functions.mean_squared_error, accfun=None
        )
        model.compute_accuracy = False
        optimizer = mnx.create_multi_node_optimizer(chainer.optimizers.Adam(), comm).setup(model)
        # in order: a thread draws the next epoch's while this one still runs
        iterator = MultiprocessIterator(
            data, 2, order_sampler=InOrder(), n_processes=1, n_prefetch=2
        )
        updater = training.updaters.StandardUpdater(
            iterator, optimizer, converter=lambda b, d: (np.stack(b), np.stack(b) * 2)
        )
        trainer = training.Trainer(updater, until, out=str(out))
        checkpoint = Checkpoint(comm)
        trainer.extend(checkpoint, trigger=(1, 'iteration'))
        if go_on:
            assert checkpoint.resume(trainer)
        trainer.run()
        return parameters(trainer)

    whole = run(shared_path / 'whole', (9, 'iteration'))
    run(shared_path / 'part', (4, 'iteration'))
    assert run(shared_path / 'part', (9, 'iteration'), go_on=True) == whole


def test_a_checkpoint_is_no_snapshot(comm, shared_path):
    build(comm, shared_path, until=(1, 'iteration')).run()
    comm.barrier()
    path = shared_path / 'checkpoint/000001_iteration_1/rank_0.npz'
    with pytest.raises(DataError, match='is no snapshot of mnx'):
        resume(path, build(comm, shared_path), comm)
