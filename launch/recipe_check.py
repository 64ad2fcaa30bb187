"""Recipe checks: every problem of a recipe at once, each with its place and what to change."""

import difflib
import json
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from launch.recipe import Recipe, contradictions
from launch.redaction import find_secrets, show


@dataclass(frozen=True)
class Problem:
    """One thing wrong: where (a dotted key path, maybe a line of the file) and what to change."""

    key: str
    message: str
    line: int | None = None

    def __post_init__(self):
        for name in ("key", "message"):
            object.__setattr__(self, name, show(getattr(self, name)))

    def __str__(self) -> str:
        place = f"{self.key} (line {self.line})" if self.line else self.key
        return f"{place}: {self.message}" if place else self.message


class RecipeError(ValueError):
    """A recipe or its overrides cannot be used; `problems` holds every reason."""

    def __init__(self, name: str, problems: Sequence[Problem]):
        self.name = name
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{name}: {count}", *map(str, problems)]))


def check_recipe(raw: dict, lines: dict[tuple, int] | None = None) -> tuple[Recipe | None, list[Problem]]:
    """Validate a mapping: the recipe, or every problem, those between sections included.

    Args:
        raw: the recipe as plain data.
        lines: the line of each key path, where the mapping came from a file.
    """
    lines = lines or {}
    problems: list[Problem] = []
    parts: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        if name in raw:
            try:
                parts[name] = _validate(field, raw[name])
            except ValidationError as error:
                problems += _describe_all(error, name, raw, lines)
            except (TypeError, ValueError) as error:
                problems.append(Problem(name, f"holds a value that is not plain data ({error})"))
        elif field.is_required():
            problems.append(Problem(name, "is missing"))
        else:
            parts[name] = field.get_default(call_default_factory=True)
    for key in raw:
        if key not in Recipe.model_fields:
            problems.append(_unknown_key((key,), Recipe.model_fields, lines))
    for path, kind in find_secrets(raw):
        text = f"looks like {kind}, and a recipe is copied into the run's files; keep it in the environment"
        problems.append(Problem(".".join(map(str, path)), text, lines.get(path)))
    for key, text in contradictions(parts):
        problems.append(Problem(key, text, lines.get(tuple(key.split(".")))))
    return (None if problems else Recipe(**parts)), problems


def _validate(field: FieldInfo, value: Any) -> Any:
    annotation: Any = field.annotation
    if field.metadata:
        annotation = Annotated[(annotation, *field.metadata)]
    return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)


def _describe_all(error: ValidationError, section: str, raw: dict, lines: dict[tuple, int]) -> list[Problem]:
    """One problem a place: a union reports each of its members, which reads as noise."""
    by_place: dict[str, Problem] = {}
    for detail in error.errors():
        problem = _describe(detail, section, raw, lines)
        by_place.setdefault(problem.key, problem)
    return list(by_place.values())


def _describe(error: ErrorDetails, section: str, raw: dict, lines: dict[tuple, int]) -> Problem:
    given = (section, *error["loc"])
    path, beside, field = _locate(given, raw)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return _unknown_key(path, beside, lines)
    if error["type"] == "missing":
        message = "is missing"
    elif error["type"] == "union_tag_not_found":
        message = "has no kind"
    elif error["type"] == "union_tag_invalid":
        context = error.get("ctx", {})
        message = f"unknown kind {context.get('tag')!r}; known kinds: {context.get('expected_tags')}"
    elif error["type"] != "value_error":
        wanted = _wanted(field) if field else ""
        message = f"wanted {wanted}, given {_brief(error['input'])}" if wanted else message
    return Problem(".".join(map(str, path)), message, lines.get(path))


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _wanted(schema: Any) -> str:
    """What a field takes, in words: `a number above 0 and below 1, or null`."""
    if isinstance(schema, FieldInfo):
        return _wanted(
            Annotated[(schema.annotation, *schema.metadata)] if schema.metadata else schema.annotation
        )
    origin, arguments = get_origin(schema), get_args(schema)
    if origin is Annotated:
        bounds: list[str] = []
        for constraint in arguments[1:]:
            constraint_metadata = constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]
            bounds += [text for item in constraint_metadata for text in _bound(item)]
        inner, *rest = _wanted(arguments[0]).split(", or ")
        return ", or ".join([" ".join([inner, " and ".join(bounds)]).strip(), *rest])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(map(_wanted, arguments)))
    if origin is list:
        return "a list"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_wanted(arguments[0])}"
    if origin is dict or (isinstance(schema, type) and issubclass(schema, BaseModel)):
        return "a mapping"
    return _TYPE_NAMES.get(schema, "")


def _bound(constraint: Any) -> list[str]:
    limits = [(text, getattr(constraint, key)) for key, text in _BOUNDS.items() if hasattr(constraint, key)]
    words = [f"{text} {limit:,}" if isinstance(limit, int) else f"{text} {limit:g}" for text, limit in limits]
    if isinstance(constraint, annotated_types.MinLen):
        words.append("that is not empty")
    pattern = getattr(constraint, "pattern", None)
    return [*words, f"that matches {pattern}"] if pattern else words


def _locate(given: Sequence[int | str], raw: Any) -> tuple[tuple, list[str], FieldInfo | None]:
    """What a pydantic location means in the file.

    Returns:
        The key path, without the tags and type names that pydantic puts between; the known keys beside its
        last key; and the field, where there is one.
    """
    models: list[type[BaseModel]] = [Recipe]
    field: FieldInfo | None = None
    beside: list[str] = []
    path: list[int | str] = []
    place = raw
    for index, part in enumerate(given):
        narrowed = [model for model in models if _tag(model) == part]
        if narrowed and len(models) > 1:
            models = narrowed
            continue
        if isinstance(part, str) and models:
            beside = [name for model in models for name in model.model_fields]
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            field = fields[0] if fields else field
            if fields:  # else a tag or type name that pydantic puts between, or a key that is not known
                models = [model for found in fields for model in _models_in(found.annotation)]
        items: Any = dict(enumerate(place)) if isinstance(place, list) else place
        is_key = isinstance(items, dict) and part in items
        if is_key or (index == len(given) - 1 and isinstance(place, dict) and isinstance(part, str)):
            place = items[part] if is_key else None
            path.append(part)
    return tuple(path), beside, field


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind and get_origin(kind.annotation) is Literal else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (list, Union, types.UnionType, Annotated):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_model else []


def _unknown_key(path: tuple, known: Iterable[str], lines: dict[tuple, int]) -> Problem:
    names = sorted(set(known))
    near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
    return Problem(".".join(map(str, path)), f"unknown key; {hint}", lines.get(path))
