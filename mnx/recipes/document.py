"""A YAML file as plain data, and the line of everything in it.

Plain data only: mappings, lists, words and numbers. A tag that asks for an object of Python is an
error like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from mnx.errors import ArgumentError

Path = Sequence['str | int']

LARGEST = 20_000  # values, with each alias written out


class EntryError(Exception):
    """What is wrong with the value at a path of keys; `Document.explains` adds file and line."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path = path
        self.text = text


INT, FLOAT = 'tag:yaml.org,2002:int', 'tag:yaml.org,2002:float'


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one, with the numbers of YAML 1.2 (section 10.3.2).

    By those of YAML 1.1 012 is ten, 1:30 is ninety, and 1e-3 a word.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  (of the base class)
        first: [(tag, form) for tag, form in known if tag not in (INT, FLOAT)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Return a decimal, octal (0o17) or hexadecimal (0xf) number."""
        text = str(self.construct_scalar(node))
        return int(text, 0 if text[:2] in ('0o', '0x') else 10)


_Loader.add_implicit_resolver(
    INT, re.compile(r'([-+]?\d+|0o[0-7]+|0x[0-9a-fA-F]+)$'), list('-+0123456789')
)
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(r'([-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$'),
    list('-+.0123456789'),
)
_Loader.add_constructor(INT, _Loader.construct_int)


@dataclass(frozen=True)
class Document:
    """What a file holds, and where.

    Attributes
    ----------
    name : str
        Of the file.
    value
        Its content.
    """

    name: str
    value: Any
    _root: yaml.Node

    def error(self, *problems: EntryError) -> ArgumentError:
        """Return an error of one line for each problem, in the order of the file.

        A mistake at an anchor, which all its aliases share, is told once.
        """
        found: dict[tuple[int, str], str] = {}
        for problem in problems:
            line, key = locate(self._root, problem.path)
            words = [f'{self.name}:{line}', *([key] if key else []), problem.text]
            found.setdefault((line, problem.text), ': '.join(words))
        return ArgumentError('\n'.join(found[place] for place in sorted(found)))

    @contextmanager
    def explains(self) -> Iterator[None]:
        """Turn an `EntryError` into an error with file and line."""
        try:
            yield
        except EntryError as problem:
            raise self.error(problem) from None


def parse(text: str, name: str) -> Document:
    """Return what the text of a file says.

    Raises
    ------
    ArgumentError
        It is no YAML, asks for more than plain data, or has a key twice. One line, which begins
        with file and line.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise ArgumentError(f'{name}:1: the file is empty, expected a mapping of keys')
        _check_size(root, name)
        with Document(name, None, root).explains():
            _check_keys(root)
        return Document(name, loader.construct_document(root), root)
    except yaml.YAMLError as error:
        raise ArgumentError(_of_yaml(error, name)) from None
    except RecursionError:
        raise ArgumentError(f'{name}:1: too many levels, one inside the other') from None
    except (TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f'{name}:1: not a value of YAML ({_one_line(error)})') from None
    finally:
        if loader is not None:
            loader.dispose()


def locate(root: yaml.Node, path: Path) -> tuple[int, str]:
    """Return the line of a value, and its key in words.

    Parts of the path that the file does not have are left out, but for a last one: it is missing.
    """
    node, line, key = root, root.start_mark.line + 1, ''
    for i, part in enumerate(path):
        found = _child(node, part)
        if found is not None:
            node, line = found
        elif not isinstance(part, str) or i < len(path) - 1:
            continue
        key += f'[{part}]' if isinstance(part, int) else f'.{part}' if key else part
    return line, key


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, int] | None:
    """Return a value in `node` and the line on which it, or its key, begins."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
        if part < len(node.value):
            item = node.value[part]
            return item, item.start_mark.line + 1
    elif isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # the later one counts where << brings another
            if key.value == part:
                return value, key.start_mark.line + 1
    return None


def _check_size(root: yaml.Node, name: str) -> None:
    """Refuse what would be endless, or not fit into memory, with its aliases written out."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise ArgumentError(_at(name, node, 'an alias leads back into what it stands in'))
        if not known:
            sizes[id(node)] = None
            known = sizes[id(node)] = 1 + sum(map(size, _children(node)))
        if known > LARGEST:
            raise ArgumentError(_at(name, node, f'more than {LARGEST} values, aliases written out'))
        return known

    size(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_keys(node: yaml.Node, path: tuple[str | int, ...] = ()) -> None:
    """Refuse a key that stands twice in a mapping: PyYAML would take the last."""
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _check_keys(child, (*path, i))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            word, line = str(key.value), key.start_mark.line + 1
            if word in seen and word != '<<':
                raise EntryError((*path, word), f'the key is on line {seen[word]} already')
            seen[word] = line
            _check_keys(value, (*path, word))


def _of_yaml(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, 'problem_mark', None) or getattr(error, 'context_mark', None)
    line = mark.line + 1 if mark else 1
    what = getattr(error, 'problem', None) or getattr(error, 'reason', None) or _one_line(error)
    tag = re.search(r"constructor for the tag '(.*)'", what)
    if tag:
        shown = tag[1].replace('tag:yaml.org,2002:', '!!')
        what = f'{shown}: a recipe holds plain values only, no objects of Python'
    return f'{name}:{line}: {what}'


def _at(name: str, node: yaml.Node, text: str) -> str:
    return f'{name}:{node.start_mark.line + 1}: {text}'


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
