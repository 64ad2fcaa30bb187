"""Recipe files: find one, extend it, put overrides on it."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from launch.recipe import Recipe
from launch.recipe_check import Problem, RecipeError, check_recipe
from launch.strict_yaml import StrictYamlError, key_lines, load_yaml, read_text

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"


def shipped_recipes() -> list[Path]:
    """The recipe files that come with the product, sorted by name."""
    return sorted(RECIPES.glob("*.yaml"))


def find_recipe(reference: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a path as it is, or the name of a shipped one.

    Args:
        reference: a path or a shipped recipe's name.
        beside: a folder that is searched as well (that of the recipe with `extends`).

    Raises:
        RecipeError: there is no such file; says which names are near.
    """
    places = [Path(reference), *([beside / reference, beside / f"{reference}.yaml"] if beside else [])]
    places.append(RECIPES / f"{reference.removesuffix('.yaml')}.yaml")
    for place in places:
        try:
            if place.is_file():
                return place
        except OSError:  # no file can have such a name
            continue
    names = [path.stem for path in shipped_recipes()]
    near = difflib.get_close_matches(Path(reference).stem, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; shipped recipes: {', '.join(names)}"
    raise RecipeError(reference, [Problem("", f"no such file, and no shipped recipe of this name{hint}")])


def read_recipe(reference: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, extend, override and check a recipe.

    Args:
        reference: a path or the name of a shipped recipe.
        overrides: `dotted.key=value` texts; the value is YAML and replaces the whole value.

    Raises:
        RecipeError: with every problem of the file and the overrides.
    """
    path = find_recipe(str(reference))
    raw, lines = _read_mapping(path)
    problems: list[Problem] = []
    if raw.get("extends") is not None:
        raw = _extend(raw, path, problems)
    for text in overrides:
        problem = _override(raw, text)
        if problem:
            problems.append(problem)
        else:
            key = tuple(text.partition("=")[0].split("."))
            lines = {path: line for path, line in lines.items() if path[: len(key)] != key}
    recipe, more = check_recipe(raw, lines)
    if recipe is None or problems:
        raise RecipeError(str(path), [*problems, *more])
    return recipe


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every default filled in; reading it gives the same recipe."""
    values = recipe.model_dump(mode="json", exclude={"extends"})
    if recipe.tokenizer is None and not recipe.data.model_fields_set & {"packing"}:
        values["data"].pop("packing")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def json_schema() -> str:
    """The JSON schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Maskwright recipe"
    return json.dumps(schema, indent=2) + "\n"


def _read_mapping(path: Path) -> tuple[dict, dict[tuple, int]]:
    try:
        text = read_text(path)
        raw = load_yaml(text)
        lines = key_lines(text)
    except StrictYamlError as error:
        raise RecipeError(str(path), [Problem("", str(error))]) from error
    if not isinstance(raw, dict):
        given = type(raw).__name__
        raise RecipeError(str(path), [Problem("", f"a recipe is a mapping of sections, not a {given}")])
    return raw, lines


def _extend(raw: dict, path: Path, problems: list[Problem]) -> dict:
    if not isinstance(raw["extends"], str):
        problems.append(Problem("extends", f"wants the name or path of a recipe, not {raw['extends']!r}"))
        return raw
    try:
        parent_path = find_recipe(raw["extends"], beside=path.parent)
        parent, _ = _read_mapping(parent_path)
    except RecipeError as error:
        problems += [Problem("extends", f"{error.name}: {problem}") for problem in error.problems]
        return raw
    if parent.get("extends") is not None:
        problems.append(
            Problem(
                "extends", f"{parent_path.name} extends {parent['extends']!r} itself; one level is allowed"
            )
        )
    return {**_merge(parent, raw), "extends": raw["extends"]}


def _merge(base: Any, top: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return {**base, **{key: _merge(base.get(key), value) for key, value in top.items()}}


def _override(raw: dict, text: str) -> Problem | None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        return Problem(text, "an override is written dotted.key=value")
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        if not isinstance(place[parent], dict):
            return Problem(key, f"{parent} holds a {type(place[parent]).__name__}; replace it as a whole")
        place = place[parent]
    try:
        place[last] = load_yaml(value)
    except StrictYamlError as error:
        return Problem(key, f"the value {value!r} is not YAML: {error}")
    return None
