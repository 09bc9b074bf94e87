"""Build mnx. What can be declared stands in pyproject.toml.

Two things cannot. Two small files belong at the root of site-packages, where Python reads them at
start: they let ``import chainer`` work in every process (see mnx/chainer_compat/__init__.py). And
there are a few loops in C, which are left out where they cannot be built (see mnx/kernels.py).
"""

import os
from pathlib import Path

import setuptools

from distutils.command.install_data import install_data  # isort: skip  (setuptools provides it)

STARTUP = Path('mnx/chainer_compat/startup')


class InstallAtSiteRoot(install_data):
    """Put data files beside the packages.

    A wheel keeps data files in ``NAME.data/data`` (installed to ``sys.prefix``) and library files
    in ``NAME.data/purelib`` (installed to site-packages). An editable wheel is a wheel, too.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.install_dir = str(Path(self.install_dir).with_name('purelib'))


class Distribution(setuptools.Distribution):
    """One that gives its data files to editable wheels, too."""

    def has_data(self) -> bool:
        """Answer what setuptools asks for an editable wheel; its own name is has_data_files."""
        return self.has_data_files()


def kernels() -> list[setuptools.Extension]:
    """Return the loops in C, or nothing where they are not wanted or cannot be built."""
    if os.environ.get('MNX_KERNELS') == '0':
        return []
    try:
        import numpy as np
    except ImportError:  # built without isolation, before NumPy is there
        return []
    return [
        setuptools.Extension(
            'mnx._kernels',
            ['mnx/_kernels.c'],
            include_dirs=[np.get_include()],
            extra_compile_args=['-O3'],
            optional=True,
        )
    ]


setuptools.setup(
    distclass=Distribution,
    ext_modules=kernels(),
    cmdclass={'install_data': InstallAtSiteRoot},
    data_files=[('', [str(STARTUP / 'mnx-chainer.pth'), str(STARTUP / '_mnx_chainer_finder.py')])],
)
