"""YAML as a person reads it: YAML 1.2 scalars, no key twice.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is false, `12:30:45` is 45045 and the last of
two equal keys wins without a word. Each of these has changed somebody's training run.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml


class StrictYamlError(ValueError):
    """The text is not YAML, or a key stands in it twice."""


class _Loader(yaml.SafeLoader):
    """A safe loader with the scalar rules of the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict = {}


_DIGITS = list("-+0123456789.")
_SCALARS = [
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", _DIGITS),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", _DIGITS),
]
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 16) if text.startswith("0x") else int(text)


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    mapping: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable) or key_node.tag == "tag:yaml.org,2002:merge":
            raise StrictYamlError(f"line {line}: a key must be a plain name, not {key!r}")
        if key in mapping:
            raise StrictYamlError(f"line {line}: the key {key!r} stands twice in one mapping; keep one")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def load_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        StrictYamlError: the text is not YAML or repeats a key; the message has the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise StrictYamlError(str(error)) from error
    except RecursionError as error:
        raise StrictYamlError("the document is nested too deeply or refers to itself") from error


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
