"""Build mnx. What can be declared stands in pyproject.toml.

One thing cannot: two small files belong at the root of site-packages, where Python reads them at
start. They let ``import chainer`` work in every process (see mnx/chainer_compat/__init__.py).
"""

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


setuptools.setup(
    distclass=Distribution,
    cmdclass={'install_data': InstallAtSiteRoot},
    data_files=[('', [str(STARTUP / 'mnx-chainer.pth'), str(STARTUP / '_mnx_chainer_finder.py')])],
)
