"""Axes: the keys of a recipe that a sweep varies, and the values of each.

`key=[a, b]` varies a key. Where the key's own value is a list (`training.betas`, `data.sources`) that is one
value, and a list of lists varies it. `key=low..high` and `key=low..high:log` are ranges, for a search.
"""

import hashlib
import itertools
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from launch.recipe import Recipe
from launch.strict_yaml import StrictYamlError, load_yaml
from launch.verdict import REQUEST, RunError

_RANGE = re.compile(r"(?P<low>[-+0-9._eE]+?)\.\.(?P<high>[-+0-9._eE]+?)(?P<log>:log)?")
_MAX_PART, _MAX_NAME = 40, 120
"""Letters of a value, and of a name: a path must stay readable, and below 255 bytes."""


@dataclass(frozen=True)
class Axis:
    """A key and the values that it takes, plain data, each once."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A key and the bounds of its values, both included; whole numbers where both bounds are."""

    key: str
    low: float
    high: float
    is_log: bool

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Space:
    """What a sweep is over.

    Attributes:
        fixed: overrides, `key=value`, that all runs share.
        axes: with listed values.
        ranges: to draw from.
    """

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    ranges: tuple[Range, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """All that is varied."""
        return tuple(axis.key for axis in (*self.axes, *self.ranges))

    def combine(self) -> Iterator[dict[str, Any]]:
        """Every combination of the listed values, the last axis fastest."""
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield dict(zip((axis.key for axis in self.axes), values, strict=True))


def read_space(texts: Sequence[str], *, is_search: bool) -> Space:
    """Tell what is varied from what is fixed.

    Args:
        texts: `key=value` of the command line.
        is_search: whether ranges may be drawn from.

    Raises:
        RunError: with everything that is wrong.
    """
    fixed: list[str] = []
    axes: list[Axis] = []
    ranges: list[Range] = []
    problems: list[str] = []
    for text in texts:
        try:
            found = _read(text, is_search)
        except ValueError as error:
            problems.append(f"{text}: {error}")
            continue
        (fixed if isinstance(found, str) else axes if isinstance(found, Axis) else ranges).append(found)  # pyright: ignore[reportArgumentType]
    keys = [text.partition("=")[0] for text in texts]
    problems += [f"{key} is given twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if not (axes or ranges or problems):
        wanted = "key=low..high or key=[a,b]" if is_search else "key=[a,b]"
        problems.append(
            f"nothing is varied: wanted {wanted}; a key whose value is a list wants a list of lists, "
            "training.betas=[[0.9,0.98],[0.9,0.999]]"
        )
    if problems:
        raise RunError(REQUEST, "\n  ".join(["the sweep cannot be read", *problems]))
    return Space(tuple(fixed), tuple(axes), tuple(ranges))


def _read(text: str, is_search: bool) -> str | Axis | Range:
    key, equals, value_text = text.partition("=")
    if not equals or not key:
        raise ValueError("wanted key=[a,b] or key=value")
    range_ = _read_range(key, value_text)
    if range_ is not None:
        if not is_search:
            raise ValueError("a range is drawn from: add --search optuna --trials N, or list the values")
        return range_
    try:
        value = load_yaml(value_text)
    except StrictYamlError as error:
        raise ValueError(f"the value is not YAML: {error}") from error
    if not is_varied(key, value):
        return text
    values = tuple(item for number, item in enumerate(value) if item not in value[:number])
    if not values:
        raise ValueError("an empty list varies nothing; give values, or leave the key out")
    return Axis(key, values)


def _read_range(key: str, text: str) -> Range | None:
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return None
    try:
        low, high = load_yaml(found["low"]), load_yaml(found["high"])
    except StrictYamlError as error:
        raise ValueError(f"a bound is no number: {error}") from error
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise ValueError(f"wanted two numbers, low..high or low..high:log, given {bound!r}")
    if not low < high:
        raise ValueError(f"wanted the lower bound first, given {low} and {high}")
    if found["log"] and low <= 0:
        raise ValueError(f"a log scale begins above 0, given {low}")
    return Range(key, low, high, bool(found["log"]))


def is_varied(key: str, value: Any) -> bool:
    """Whether a value of the command line is a list of values, and not one value that is a list."""
    if not isinstance(value, list):
        return False
    if value and all(isinstance(item, list) for item in value):
        return True  # no key of a recipe holds a list of lists
    kinds = _find_kinds(key)
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
    if not lists:
        return True
    if not any(kind in (int, float, str, bool) for kind in kinds):
        return False
    # A value of model.config is a number, or a list of texts: [64, 128] can only be two numbers.
    return not any(_fits(kind, value) for kind in lists)


def _fits(kind: Any, value: list) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _find_kinds(key: str) -> list[Any]:
    """The types that a dotted key may hold, unions taken apart; none for a key that is not known."""
    kinds: list[Any] = [Recipe]
    for part in key.split("."):
        below: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
                below += _split(kind.model_fields[part].annotation)
            elif get_origin(kind) is dict:
                below += _split(get_args(kind)[1])
        kinds = below
    return kinds


def _split(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for argument in get_args(annotation) for kind in _split(argument)]
    if origin is Annotated:
        return _split(get_args(annotation)[0])
    if origin is Literal:
        return [type(argument) for argument in get_args(annotation)]
    return [annotation]


def write_override(key: str, value: Any) -> str:
    """`key=value` that reads as this value."""
    if isinstance(value, str) and "\n" not in value:
        try:
            if load_yaml(value) == value:
                return f"{key}={value}"
        except StrictYamlError:
            pass  # a text that only looks like YAML is quoted
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def name_values(values: Mapping[str, Any]) -> str:
    """A folder's name for a combination: `learning_rate=0.001,seed=1`; told apart where it is cut short."""
    short = shorten_keys(list(values))
    name = ",".join(f"{short[key]}={show_value(value)}" for key, value in values.items())
    return name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}-{_hash(dict(values))}"


def show_value(value: Any) -> str:
    """A value as part of a file name."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = "+".join(map(show_value, value))
    elif isinstance(value, dict):
        text = "+".join(f"{key}-{show_value(below)}" for key, below in value.items())
    else:
        text = json.dumps(value)
    shown = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "empty"
    is_whole = isinstance(value, int | float | None) or shown == value
    if len(shown) <= _MAX_PART and (is_whole or isinstance(value, list)):
        return shown
    return f"{shown[:_MAX_PART]}-{_hash(value)}"


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """The end of each key, as long as it takes to tell it from the others."""
    found: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        found[key] = next(
            (end for end in ends if sum(other == key or other.endswith(f".{end}") for other in keys) == 1),
            key,
        )
    return found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
