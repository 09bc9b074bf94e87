"""Every entry of the patch table: what it repairs works, and fails in Chainer as it is on disk."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import chainer
import numpy as np
import pytest
from packaging.version import Version

from mnx.chainer_compat import PATCHES, Patch
from mnx.chainer_compat.late import Late
from mnx.chainer_compat.loading import apply

Use = Callable[[ModuleType, Path], None]


class Case(NamedTuple):
    """How to see that a module is repaired."""

    use: Use
    """Uses what was broken, given the module and a folder."""
    fails: str
    """A part of the message with which the module on disk fails."""
    here: bool
    """Whether it fails with the NumPy that is installed."""


CASES: dict[str, Case] = {}


def case(name: str, fails: str, *, since_numpy: str = '2.0') -> Callable[[Use], Use]:
    def register(use: Use) -> Use:
        here = Version(np.__version__) >= Version(since_numpy)
        CASES[name] = Case(use, fails, here)
        return use

    return register


# --- what stopped the import ---------------------------------------------------------------------


@case('chainer._environment_check', 'distutils|pkg_resources')
def check_environment(module, folder):
    module.check()


@case('chainer.functions.array.as_strided', 'sctypes')
def as_strided(module, folder):
    x = chainer.Variable(np.arange(6, dtype=np.float32))
    y = module.as_strided(x, (4, 3), (1, 1), 0)
    np.testing.assert_array_equal(y.array[1], [1, 2, 3])
    y.grad = np.ones_like(y.array)
    y.backward()
    np.testing.assert_array_equal(x.grad, [1, 2, 3, 3, 2, 1])


# --- what failed in use --------------------------------------------------------------------------


@case('chainer.functions.array.resize_images', "numpy.float|'float'")
def resize_images(module, folder):
    x = chainer.Variable(np.array([[[[0, 1], [2, 3]]]], dtype=np.float32))
    for options in ({}, {'align_corners': False}, {'mode': 'nearest'}):
        y = module.resize_images(x, (4, 4), **options)
        assert y.shape == (1, 1, 4, 4)
        assert (y.array[0, 0, 0, 0], y.array[0, 0, -1, -1]) == (0, 3)
        y.grad = np.ones_like(y.array)
        y.backward()
        assert x.grad.sum() == pytest.approx(16)
        x.cleargrad()


@case('chainer.distributions.categorical', 'can only concatenate tuple')
def categorical(module, folder):
    p = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    for x in (np.array([1, 0]), chainer.Variable(np.array([1, 0]))):
        log_prob = module.Categorical(p=p).log_prob(x)
        np.testing.assert_allclose(log_prob.array, np.log([0.75, 0.5]), rtol=1e-6)


@case('chainer.functions.array.pad_sequence', 'out of bounds for uint8')
def pad_sequence(module, folder):
    xs = [np.array([1, 2], dtype=np.uint8), np.array([3], dtype=np.uint8)]
    np.testing.assert_array_equal(module.pad_sequence(xs, padding=-1).array, [[1, 2], [3, 255]])
    half = module.pad_sequence([x.astype(np.float16) for x in xs], padding=-1).array
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, [[1, 2], [3, -1]])


@case('chainer.variable', 'device: cpu', since_numpy='2.1')
def debug_print(module, folder):
    assert '- device: CPU\n' in module.Variable(np.ones(2, dtype=np.float32)).debug_print()


@case('chainer.serializers.hdf5', 'No conversion path for dtype')
def hdf5_text(module, folder):
    h5py = pytest.importorskip('h5py')
    with h5py.File(folder / 'text.h5', 'w') as file:
        module.HDF5Serializer(file)('text', 'größer')
    with h5py.File(folder / 'text.h5', 'r') as file:
        assert module.HDF5Deserializer(file)('text', '') == 'größer'


@case('chainer.functions.math.sparse_matmul', 'float16')
def sparse_matmul(module, folder):
    pytest.importorskip('scipy')
    dense = np.array([[0, 2, 0], [1, 0, 3]], dtype=np.float16)
    for a, b in ((dense, dense.T), (np.stack([dense, 2 * dense]), np.stack([dense.T] * 2))):
        y = module.sparse_matmul(chainer.utils.to_coo(a), b)
        assert y.dtype == np.float16
        np.testing.assert_array_equal(y.array, a @ b)


@case('chainer.testing.helper', 'pkg_resources')
def requirements(module, folder):
    def skips(decorate, *wanted):
        return getattr(decorate(*wanted)(lambda: None), '__unittest_skip__', False)

    assert not skips(module.with_requires, 'numpy>=2', 'chainer==7.8.1')
    assert skips(module.with_requires, 'numpy>=2', 'numpy<2')
    assert skips(module.with_requires, 'no-such-package')
    assert skips(module.without_requires, 'numpy')
    with module.patch('os.getcwd', return_value='here') as getcwd:
        assert getcwd() == 'here'


@case('chainer.testing.training', 'mock')
def trainer_for_tests(module, folder):
    assert module.get_trainer_with_mock_updater().updater.iteration == 0


@case('chainer.testing.doctest_helper', 'pkg_resources')
def doctest_requirements(module, folder):
    assert module.skipif_requires_satisfied('no-such-package') is False


# --- what only nagged ----------------------------------------------------------------------------


@case('chainer.functions.math.fix', 'fix', since_numpy='2.5')
def fix(module, folder):
    x = np.array([-1.5, -0.5, 0.5, 1.5], dtype=np.float32)
    y = module.fix(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.array, [-1, 0, 0, 1])


@case('chainer.dataset.convert', 'maximum', since_numpy='2.5')
def pad_examples(module, folder):
    batch = [np.ones((1, 3), dtype=np.float32), np.ones((2, 2), dtype=np.float32)]
    y = module.concat_examples(batch, padding=0)
    assert y.shape == (2, 2, 3)
    assert y.sum() == 7


@case('chainer.links.activation.maxout', 'shape', since_numpy='2.5')
def maxout(module, folder):
    def by_unit(array):
        array[...] = np.arange(array.shape[0]).reshape(-1, *[1] * (array.ndim - 1))

    link = module.Maxout(2, out_size=3, pool_size=4, initialW=by_unit, initial_bias=by_unit)
    assert (link.linear.W.shape, link.linear.b.shape) == ((12, 2), (12,))
    units = np.repeat(np.arange(3), 4)
    np.testing.assert_array_equal(link.linear.W.array, np.stack([units, units], axis=1))
    np.testing.assert_array_equal(link.linear.b.array, units)


@case('chainer.iterators.multiprocess_iterator', 'setDaemon')
def prefetch_thread(module, folder):
    # No processes here: a thread that runs no task is enough.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.multiprocessing, 'Pool', lambda **_: None)
        patch.setattr(module._PrefetchLoop, '_run', lambda self: None)
        loop = object.__new__(module._PrefetchLoop)
        for name in ('dataset', 'mem_size', 'mem_bulk', 'n_processes', 'maxtasksperchild'):
            setattr(loop, name, None)
        loop._interruption_testing = False
        assert loop.launch_thread().daemon


@case('chainer.backends.cuda', 'cuDNN is not enabled')
def no_cudnn(module, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'available', True)
        patch.setattr(module, '_cupy_major', 14)
        patch.setattr(module, 'cudnn_enabled', False)
        patch.setattr(module, '_cudnn_disabled_by_user', False, raising=False)
        patch.delattr(module.check_cuda_available, '_already_warned', raising=False)
        module.check_cuda_available()
        patch.setattr(module, '_cupy_major', 13)  # there it is good advice
        with pytest.warns(UserWarning, match='cuDNN is not enabled'):
            module.check_cuda_available()


# --- what made every start slow ------------------------------------------------------------------


def special(name: str, x: float, expected: float) -> None:
    @case(f'chainer.functions.math.{name}', 'loaded at the start')
    def use(module, folder):
        pytest.importorskip('scipy')
        assert isinstance(module.special, Late), 'loaded at the start'
        y = getattr(module, name)(np.array([x]))
        np.testing.assert_allclose(y.array, [expected], rtol=1e-12)


special('erfcinv', 0.5, 0.4769362762044699)
special('erfcx', 1.0, 0.427583576155807)
special('erfinv', 0.5, 0.4769362762044699)
special('ndtri', 0.975, 1.959963984540054)


@case('chainer.distributions.multivariate_normal', 'loaded at the start')
def multivariate_normal(module, folder):
    pytest.importorskip('scipy')
    assert isinstance(module.scipy, Late), 'loaded at the start'
    scale = np.diag([1, 2]).astype(np.float32)
    normal = module.MultivariateNormal(np.zeros(2, np.float32), scale_tril=scale)
    density = normal.log_prob(np.array([1, 2], np.float32))
    np.testing.assert_allclose(density.array, -np.log(2 * np.pi * 2) - 0.5 * (1 + 1), rtol=1e-6)


@case('chainer.datasets.svhn', 'loaded at the start')
def svhn(module, folder):
    pytest.importorskip('scipy')
    assert isinstance(module.io, Late), 'loaded at the start'
    module.io.savemat(folder / 'train.mat', {'X': np.arange(3)})
    np.testing.assert_array_equal(module.io.loadmat(folder / 'train.mat')['X'], [[0, 1, 2]])


@case('chainer.dataset.download', 'loaded at the start')
def download(module, folder):
    assert isinstance(module.filelock, Late), 'loaded at the start'
    module.set_dataset_root(str(folder))

    def create(path):
        Path(path).write_text('made once')
        return 'made'

    path = str(folder / 'text')
    for expected in ('made', 'made once'):  # under a lock, then found
        found = module.cache_or_load_file(path, create, lambda path: Path(path).read_text())
        assert found == expected


# --- a bug of 7.8.1 ------------------------------------------------------------------------------


@case('chainer.functions.connection.deconvolution_2d', 'not enough values to unpack')
def gradient_of_weight_alone(module, folder):
    x = np.ones((1, 1, 2, 2), dtype=np.float32)
    weight = chainer.Variable(np.ones((1, 1, 3, 3), dtype=np.float32))
    y = module.deconvolution_2d(x, weight)
    y.grad = np.ones_like(y.array)
    y.node.creator_node.cover_all = None  # as ChainerX leaves it
    y.backward()
    np.testing.assert_array_equal(weight.grad, np.full((1, 1, 3, 3), 4))


@case('chainer.functions.loss.softmax_cross_entropy', 'number of gradients')
def gradient_of_an_empty_batch(module, folder):
    x = chainer.Variable(np.empty((0, 3), dtype=np.float32))
    module.softmax_cross_entropy(x, np.empty(0, dtype=np.int32)).backward()
    assert x.grad.shape == (0, 3)


# --- tests ---------------------------------------------------------------------------------------

by_module = pytest.mark.parametrize('patch', PATCHES, ids=lambda patch: patch.module)


def on_disk(name: str) -> ModuleType:
    """Load a module of Chainer unrepaired, beside the repaired one."""
    path = importlib.import_module(name).__file__
    assert path is not None
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@by_module
def test_repaired(patch: Patch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        CASES[patch.module].use(importlib.import_module(patch.module), tmp_path)


@by_module
def test_broken_on_disk(patch: Patch, tmp_path, monkeypatch):
    """Or the patch is not needed any more."""
    use, fails, here = CASES[patch.module]
    if not here:
        pytest.skip('works with this NumPy')
    for name in ('pkg_resources', 'mock'):  # other packages may have brought them
        monkeypatch.setitem(sys.modules, name, None)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(Exception, match=fails):
            use(on_disk(patch.module), tmp_path)


@by_module
def test_text(patch: Patch):
    """All fragments are there, and no line moves."""
    module = importlib.import_module(patch.module)
    source = Path(module.__file__).read_text(encoding='utf-8')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        repaired = apply(patch, source)
    assert len(repaired.splitlines()) == len(source.splitlines())
    assert repaired != source
    for fragment in patch.fragments:
        assert fragment.old.count('\n') == fragment.new.count('\n')


def test_each_module_has_one_entry_and_one_case():
    names = [patch.module for patch in PATCHES]
    assert len(names) == len(set(names))
    assert set(names) == CASES.keys()


def test_other_text_is_named_and_left_alone():
    patch = next(patch for patch in PATCHES if patch.module == 'chainer.functions.math.fix')
    with pytest.warns(RuntimeWarning, match=r'chainer\.functions\.math\.fix.*found it 2 times'):
        assert apply(patch, 'xp.fix(x); xp.fix(x)') == 'xp.fix(x); xp.fix(x)'
