"""The recipes in the guide are right."""

from __future__ import annotations

import re

from mnx.recipes import schema
from mnx.recipes.document import parse
from mnx.recipes.plan import plan
from tests.launching import ROOT

GUIDE = (ROOT / 'docs' / 'guide' / 'train.md').read_text()


def test_recipes_in_the_guide() -> None:
    texts = re.findall(r'^```yaml\n(.*?)^```$', GUIDE, re.DOTALL | re.MULTILINE)
    assert texts
    for text in texts:
        plan(schema.validate(parse(text, 'train.md')), (1, 8, 8), 10)


def test_all_keys_are_in_the_guide() -> None:
    words = set(re.findall(r'\w+', GUIDE))
    for name, entry in vars(schema).items():
        if isinstance(entry, type) and issubclass(entry, schema.Entry):
            assert set(entry.model_fields) <= words, name
