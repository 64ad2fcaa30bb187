"""YAML as a person reads it: the scalars of YAML 1.2, no key twice, and nothing that only a parser sees.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is false, `12:30:45` is 45045 and the last of two
equal keys wins without a word. Each of these has changed somebody's training run. Anchors, aliases, merge
keys and tags are refused: nine lines of aliases print as a gigabyte. One deviation from YAML 1.2 is kept:
`10_000` is a number.
"""

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
# The largest number that a recipe can mean has 19 digits; Python refuses from 4,300 on.
_MAX_DIGITS = 100


class StrictYamlError(ValueError):
    """The text is not YAML, or more of YAML than is read here; the message has the line."""


class _Loader(yaml.SafeLoader):
    """A safe loader with the scalar rules of the YAML 1.2 core schema, for plain documents only."""

    yaml_implicit_resolvers: dict = {}
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node, which must be a plain one."""
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            name = shorten(event.anchor)
            raise StrictYamlError(f"line {line}: anchors and aliases ({name}) are not read; write it out")
        if event.tag is not None:
            raise StrictYamlError(f"line {line}: tags ({shorten(event.tag)}) are not read; remove it")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise StrictYamlError(f"line {line}: nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]
        self._depth -= 1
        return node


_DIGITS = list("-+0123456789.")
_SCALARS = [
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", _DIGITS),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _DIGITS,
    ),
]
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = _check_digits(loader, node)
    return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = _check_digits(loader, node).lower()
    value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(value) and "inf" not in text:
        line = node.start_mark.line + 1
        raise StrictYamlError(f"line {line}: {text} is larger than any number; write .inf if that is meant")
    return value


def _check_digits(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node)).replace("_", "")
    if len(text) > _MAX_DIGITS:
        line = node.start_mark.line + 1
        raise StrictYamlError(f"line {line}: a number of {len(text):,} digits; quote it if it is a text")
    return text


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    mapping: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            raise StrictYamlError(f"line {line}: a key must be a plain name, not {shorten(key)}")
        if key == "<<":
            raise StrictYamlError(f"line {line}: merge keys (<<) are not read; write the keys out")
        if key in mapping:
            raise StrictYamlError(f"line {line}: the key {key!r} stands twice in one mapping; keep one")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def read_text(path: Path) -> str:
    """The text of a YAML file, UTF-8, of at most MAX_BYTES.

    Raises:
        StrictYamlError: it cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StrictYamlError(f"it cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise StrictYamlError(f"it is larger than {MAX_BYTES:,} bytes, which no recipe is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StrictYamlError(f"it is not UTF-8 (byte {error.start:,}); convert it") from error


def load_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        StrictYamlError: the text is not plain YAML, too large or nested too deep, or repeats a key.
    """
    if len(text) > MAX_BYTES:
        raise StrictYamlError(f"the text is longer than {MAX_BYTES:,} characters")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise StrictYamlError(str(error)) from error


def key_lines(text: str) -> dict[tuple, int]:
    """The line (from 1) on which each key path of a document stands; list items by index."""
    lines: dict[tuple, int] = {}

    def walk(node: yaml.Node | None, path: tuple) -> None:
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                lines[(*path, key_node.value)] = key_node.start_mark.line + 1
                walk(value_node, (*path, key_node.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines[(*path, index)] = item.start_mark.line + 1
                walk(item, (*path, index))

    walk(yaml.compose(text, Loader=_Loader), ())
    return lines


def shorten(value: Any) -> str:
    """A value in a message, on one line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
