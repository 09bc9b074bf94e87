"""What is wrong in Chainer 7.8.1 on today's Python, and the text that cures it.

The table is in five parts: what stops ``import chainer``, what fails when it is used, what only
nags, what makes every start slow, and bugs of the last release.
"""

from __future__ import annotations

from typing import NamedTuple


class Fragment(NamedTuple):
    """One piece of text to replace.

    Both texts have the same number of lines, so that line numbers in tracebacks stay right.
    """

    old: str
    new: str
    times: int = 1
    """How often the old text stands in the module of Chainer 7.8.1."""


class Patch(NamedTuple):
    """The repair of one module."""

    module: str
    wrong: str
    """What is wrong, and since when."""
    fragments: tuple[Fragment, ...]


def _late(old: str, name: str) -> Fragment:
    """Load a module when it is used, not when Chainer is."""
    return Fragment(old, f'from mnx.chainer_compat.late import {name}\n')


IMPORT = (
    Patch(
        'chainer._environment_check',
        'numpy.distutils is gone (NumPy 2, Python 3.12), pkg_resources too (setuptools 82). They '
        'serve two checks, of a NumPy for macOS that is no more and of versions long past.',
        (
            Fragment('import numpy.distutils.system_info\n', '\n'),
            Fragment('import pkg_resources\n', '\n'),
            Fragment('    _check_osx_numpy_backend()\n', '\n'),
            Fragment('    _check_optional_dependencies()\n', '\n'),
        ),
    ),
    Patch(
        'chainer.functions.array.as_strided',
        'numpy.sctypes is gone (NumPy 2).',
        (
            Fragment("np.sctypes['int']", '(np.int8, np.int16, np.int32, np.int64)'),
            Fragment("np.sctypes['float']", '(np.float16, np.float32, np.float64, np.longdouble)'),
        ),
    ),
)

USE = (
    Patch(
        'chainer.functions.array.resize_images',
        'numpy.float is gone (NumPy 1.24): it always was the built-in float.',
        (Fragment('dtype=numpy.float)', 'dtype=float)', 6),),
    ),
    Patch(
        'chainer.distributions.categorical',
        'numpy.meshgrid returns a tuple, and a list cannot be added to it (NumPy 2).',
        (Fragment('self.log_p[mg + [', 'self.log_p[list(mg) + [', 2),),
    ),
    Patch(
        'chainer.functions.array.pad_sequence',
        'The usual padding, -1, does not fit into unsigned integers (NumPy 2, NEP 50). It wraps '
        'around, as it used to.',
        (
            Fragment(
                'y[i, l:] = self.padding',
                'y[i, l:] = numpy.asarray(self.padding).astype(y.dtype)',
            ),
        ),
    ),
    Patch(
        'chainer.variable',
        "numpy.ndarray has a .device, the string 'cpu' (NumPy 2.1): Variable.debug_print() shows "
        'that one.',
        (
            Fragment(
                "device = getattr(array, 'device', 'CPU')",
                "device = ('CPU' if isinstance(array, numpy.ndarray) "
                "else getattr(array, 'device', 'CPU'))",
            ),
        ),
    ),
    Patch(
        'chainer.serializers.hdf5',
        'Text is read as bytes (h5py 3), and was never written: HDF5 has no type for arrays of '
        'text. A Trainer with a LogReport keeps its log as text. And see SLOW.',
        (
            _late('import h5py\n', 'h5py'),
            Fragment(
                'arr = _cpu._to_cpu(value)',
                'arr = (numpy.asarray(value, h5py.string_dtype()) if isinstance(value, str) '
                'else _cpu._to_cpu(value))',
            ),
            Fragment(
                'value = type(value)(numpy.asarray(dataset))',
                'value = type(value)(dataset.asstr()[()] if isinstance(value, str) '
                'and h5py.check_string_dtype(dataset.dtype) else numpy.asarray(dataset))',
            ),
        ),
    ),
    Patch(
        'chainer.functions.math.sparse_matmul',
        'SciPy has no sparse matrices of float16 any more: compute in float32, as Chainer does on '
        'a GPU. And see SLOW.',
        (
            _late('from scipy import sparse\n', 'sparse'),
            Fragment(
                '    _n = B.shape[-1]\n    if B.ndim == 2:\n        sp_A',
                '    _n = B.shape[-1]; A_data = A_data.astype('
                'numpy.promote_types(A_data.dtype, numpy.float32), copy=False)\n'
                '    if B.ndim == 2:\n        sp_A',
            ),
        ),
    ),
    Patch(
        'chainer.testing.helper',
        'pkg_resources is gone (setuptools 82); mock is part of Python (3.3).',
        (
            Fragment(
                'import pkg_resources\n',
                'from mnx.chainer_compat import requirements as pkg_resources\n',
            ),
            Fragment('    import mock\n', '    from unittest import mock\n'),
        ),
    ),
    Patch(
        'chainer.testing.training',
        'mock is part of Python (3.3).',
        (Fragment('    import mock\n', '    from unittest import mock\n'),),
    ),
    Patch(
        'chainer.testing.doctest_helper',
        'pkg_resources is gone (setuptools 82).',
        (
            Fragment(
                'import pkg_resources\n',
                'from mnx.chainer_compat import requirements as pkg_resources\n',
            ),
        ),
    ),
)

NAG = (
    Patch(
        'chainer.functions.math.fix',
        'numpy.fix is deprecated (NumPy 2.5); trunc is the same, also in CuPy.',
        (Fragment('xp.fix(x)', 'xp.trunc(x)'),),
    ),
    Patch(
        'chainer.dataset.convert',
        'A third positional argument of numpy.maximum is deprecated (NumPy 2.5).',
        (
            Fragment(
                'numpy.maximum(shape, array.shape, shape)',
                'numpy.maximum(shape, array.shape, out=shape)',
            ),
        ),
    ),
    Patch(
        'chainer.links.activation.maxout',
        'Setting the shape of an array is deprecated (NumPy 2.5). A reshaped view is the same '
        'memory, so nothing has to be set back.',
        (
            Fragment(
                'array.shape = (out_size, pool_size, in_size)\n',
                'array = array.reshape(out_size, pool_size, in_size)\n',
            ),
            Fragment(
                'array.shape = (out_size, pool_size)\n',
                'array = array.reshape(out_size, pool_size)\n',
            ),
            Fragment('                array.shape = (linear_out_size, in_size)\n', '\n'),
            Fragment('                array.shape = linear_out_size,\n', '\n'),
        ),
    ),
    Patch(
        'chainer.iterators.multiprocess_iterator',
        'Thread.setDaemon is deprecated (Python 3.10); without shuffling it cannot be saved.',
        (
            Fragment('thread.setDaemon(True)', 'thread.daemon = True'),
            Fragment(
                'order = self._state.order.copy()',
                'order = None if self._state.order is None else self._state.order.copy()',
            ),
        ),
    ),
    Patch(
        'chainer.backends.cuda',
        'CuPy 14 has no cuDNN any more: do not tell the user to install it.',
        (
            Fragment(
                '    if (not cudnn_enabled and\n',
                '    if (not cudnn_enabled and _cupy_major < 14 and\n',
            ),
        ),
    ),
)

_SPECIAL = _late('from scipy import special\n', 'special')
_SCIPY = (
    'SciPy is loaded by every program, for what few use: 0.25 s of processor time in each process.'
)

SLOW = (
    Patch('chainer.functions.math.erfcinv', _SCIPY, (_SPECIAL,)),
    Patch('chainer.functions.math.erfcx', _SCIPY, (_SPECIAL,)),
    Patch('chainer.functions.math.erfinv', _SCIPY, (_SPECIAL,)),
    Patch('chainer.functions.math.ndtri', _SCIPY, (_SPECIAL,)),
    Patch(
        'chainer.distributions.multivariate_normal',
        _SCIPY,
        (_late('import scipy.linalg\n', 'scipy'),),
    ),
    Patch('chainer.datasets.svhn', _SCIPY, (_late('from scipy import io\n', 'io'),)),
    Patch(
        'chainer.dataset.download',
        'filelock is loaded by every program, for downloads. In its version 4 it listens to '
        "Python's audit events, so that id() takes eight times as long, of which a backward pass "
        'calls thousands.',
        (_late('import filelock\n', 'filelock'),),
    ),
)

BUG = (
    Patch(
        'chainer.functions.connection.deconvolution_2d',
        'The gradient with regard to W alone fails: arrays are given where shapes are wanted.',
        (Fragment('self._set_cover_all(x, W)', 'self._set_cover_all(x.shape, W.shape)'),),
    ),
    Patch(
        'chainer.functions.loss.softmax_cross_entropy',
        'The gradient of an empty batch comes with one None too many, and backward refuses it.',
        (
            Fragment('numpy.zeros(x.shape, dtype=x.dtype), None', 'numpy.zeros(x.shape, x.dtype),'),
            Fragment('cupy.zeros(x.shape, dtype=x.dtype), None', 'cupy.zeros(x.shape, x.dtype),'),
        ),
    ),
)

PATCHES = IMPORT + USE + NAG + SLOW + BUG
