"""Tests of recipes need the extras `cli` and `examples`: without them they are left out."""

from importlib.util import find_spec

_MISSING = [name for name in ('pydantic', 'yaml', 'sklearn') if find_spec(name) is None]

collect_ignore_glob = ['test_*.py'] if _MISSING else []
