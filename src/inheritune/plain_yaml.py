"""YAML of plain values: mappings with text as keys, lists, texts, numbers, true and false, null.

What YAML 1.1 knows beyond them surprises in a recipe, so it is read as YAML 1.2 does (`1e4` is a number, `2:8`, `010`
and `2024-05-01` are texts) or refused (a key that is given twice, other tags, structures that hold themselves).
"""

from __future__ import annotations

import re
import reprlib
import textwrap
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from inheritune import UserError

MOST_BYTES = 2**18
LONGEST_REASON = 500
"""Characters of what the YAML library has to say."""
MOST_DEPTH = 32
MOST_VALUES = 100_000
"""With every alias written out: a few lines of them can stand for billions of values."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = tuple(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_MERGE = _TAG + "merge"
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|"
    r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
)


class _Short(reprlib.Repr):
    """A value in a message: in one line, and no more of it than helps to find it."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 128 else f"a number of {x.bit_length()} bits"


shown = _Short().repr


class _Loader(yaml.SafeLoader):
    """Reads plain values only; what they look like is set below."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError) as error:  # `!!int word`, `!!bool word`, `!!float ''`
            name = node.tag.removeprefix(_TAG)
            raise ConstructorError(None, None, f"this is no value of {name!r}", node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Writes in quotes what either version of YAML would take for something else than the text it is."""


_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag in _PLAIN
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag in (_TAG + "null", _TAG + "bool", _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))


def read(path: Path) -> Any:
    """The value that a YAML file holds.

    Raises:
        UserError: it is not UTF-8, not YAML, or more than plain values; with the line.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} is not a recipe: it is larger than {MOST_BYTES // 2**10} KiB")
    return parse_named(content, f"{path} is not a YAML file of plain values")


def parse_named(content: bytes | str, otherwise: str) -> Any:
    """As `parse`.

    Raises:
        UserError: begins with `otherwise`, and says where and why.
    """
    try:
        return parse(content.decode("utf-8") if isinstance(content, bytes) else content)
    except RecursionError:
        raise UserError(f"{otherwise}: it is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise UserError(f"{otherwise}: {textwrap.shorten(reason, LONGEST_REASON)}") from error


def parse(text: str) -> Any:
    """The value that a text in YAML holds; raises yaml.YAMLError, or RecursionError if it is nested too deeply."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _values(node, 0, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def dump(values: Any) -> str:
    """Plain values as YAML that `parse` reads back to the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _values(node: yaml.Node, depth: int, known: dict[int, int]) -> int:
    """How many values a node stands for, with every alias written out; `known`: of nodes that were counted before."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise ConstructorError(None, None, "a structure that holds itself", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    if depth > MOST_DEPTH:
        raise ConstructorError(None, None, f"more than {MOST_DEPTH} levels deep", node.start_mark)
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif any("\ud800" <= character <= "\udfff" for character in node.value):
        raise ConstructorError(None, None, "half of a character (a surrogate)", node.start_mark)
    total = 1 + sum(_values(part, depth + 1, known) for part in parts)
    if total > MOST_VALUES:
        raise ConstructorError(None, None, f"more than {MOST_VALUES} values", node.start_mark)
    known[id(node)] = total
    return total


def _check_keys(node: yaml.MappingNode) -> None:
    """Every key is a text, and is given once."""
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag == _MERGE:
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
            raise ConstructorError(None, None, "this key is not a text: put it in quotes", key.start_mark)
        if key.value in seen:
            raise ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
        seen.add(key.value)
