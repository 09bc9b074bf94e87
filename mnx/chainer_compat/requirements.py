"""The two names that ``chainer.testing`` takes of ``pkg_resources``."""

from __future__ import annotations

from importlib import metadata


class ResolutionError(Exception):
    """A requirement is not met."""


class WorkingSet:
    """The distributions of this environment."""

    def require(self, *requirements: str) -> None:
        """Raise a `ResolutionError` unless each requirement is installed."""
        for requirement in requirements:
            if not _is_met(requirement):
                raise ResolutionError(requirement)


def _is_met(requirement: str) -> bool:
    from packaging.requirements import Requirement  # pytest depends on it, and brings it

    wanted = Requirement(requirement)
    try:
        installed = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return False
    return wanted.specifier.contains(installed, prereleases=True)
