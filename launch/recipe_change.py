"""What changed in a recipe since a checkpoint was written, and whether the run may go on under it.

Recipes are compared by what they mean: defaults filled in, values that stand for another one resolved, the
order of keys left aside. What a change of a key means has a module of its own, `recipe_policy`.
"""

import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.recipe import Recipe
from launch.recipe_check import Problem, check_recipe
from launch.recipe_policy import POLICIES, Policy, find_policy, take_stricter
from launch.redaction import show_value
from launch.verdict import REQUEST, RESUME, RunError

CHANGES = "changes.jsonl"
_ABSENT = object()


@dataclass(frozen=True)
class Change:
    """A key whose meaning changed.

    Attributes:
        key: dotted; items of lists by number.
        then, now: plain data; None also where there is nothing.
        policy: of the key, see above.
        is_accepted: by `--accept-changes`.
    """

    key: str
    then: Any
    now: Any
    policy: Policy
    is_accepted: bool = False

    def __str__(self) -> str:
        return f"{self.key}: was {show_value(self.then)}, is {show_value(self.now)}"

    @property
    def is_allowed(self) -> bool:
        """Whether a run goes on under it; of a place (`content`), if what lies there is the same."""
        if self.policy == "longer":
            return _is_longer(self.then, self.now) or self.is_accepted
        return self.policy in ("free", "recorded", "content") or (
            self.policy == "flagged" and self.is_accepted
        )


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, to be kept in a checkpoint; `check_recipe` reads it."""
    values = recipe.model_dump(mode="json")
    if recipe.model.family == "canine":
        values["data"]["packing"] = False  # its rows are never packed, and a recipe may not say so
    return values


def parse_accepted(text: str) -> tuple[str, ...]:
    """The keys of `--accept-changes KEY[,KEY]`.

    Raises:
        RunError: one of them is no key that can be accepted.
    """
    keys = tuple(part.strip() for part in text.split(",") if part.strip())
    known = [key for key, policy in POLICIES.items() if policy in ("flagged", "longer")]
    for key in keys:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        if key in POLICIES:
            hint = f"a change of it wants {_WANTS[POLICIES[key]]}"
        raise RunError(REQUEST, f"--accept-changes {key}: {hint}")
    return keys


_WANTS: dict[Policy, str] = {
    "free": "no flag",
    "recorded": "no flag",
    "longer": "no flag to run longer",
    "content": "no flag, but the same content",
    "flagged": "this flag",
    "fixed": "another --output",
}


def check_resume(
    state: dict[str, Any], recipe: Recipe, *, data_key: str, place: Path, accepted: Collection[str] = ()
) -> list[Change]:
    """What changed since a checkpoint, all of it allowed; the free ones are left out.

    Args:
        state: of the checkpoint: `recipe` (see describe_recipe), `data_key` and `step`.
        recipe: that of now.
        data_key: the key of its store.
        place: the checkpoint, for the message.
        accepted: keys whose change is accepted (`parse_accepted`).

    Raises:
        RunError: something changed that may not; exit code 4, with every such key, then, now, and what to do.
    """
    then = _read_then(state, place)
    changes = find_changes(then, recipe, accepted)
    is_same_text = state["data_key"] == data_key
    refused = [change for change in changes if not change.is_allowed]
    if not is_same_text:
        places = [change for change in changes if change.policy == "content"]
        is_told = any(change.key.startswith(("data.", "tokenizer.")) for change in refused)
        refused += places
        if not (places or is_told):
            refused.append(Change("data (its text)", state["data_key"], data_key, "fixed"))
    refused += _find_too_short(recipe, state["step"])
    if refused:
        raise RunError(RESUME, _tell(refused, changes, place))
    return [change for change in changes if change.policy != "free"]


def find_changes(then: Recipe, now: Recipe, accepted: Collection[str] = ()) -> list[Change]:
    """Every key whose meaning differs, in the order of the schema; a section that came or went is one."""
    old, new = _flatten(_resolve(then)), _flatten(_resolve(now))
    found: dict[str, Change] = {}
    for path in dict.fromkeys([*old, *new]):
        before, after = old.get(path, _ABSENT), new.get(path, _ABSENT)
        if _is_same(before, after):
            continue
        whole = _find_whole(path, old if before is _ABSENT else new if after is _ABSENT else None)
        key, policy = ".".join(whole), find_policy(path)
        if key in found:
            policy = take_stricter(policy, found[key].policy)
        found[key] = Change(key, _take(old, whole), _take(new, whole), policy, key in accepted)
    return list(found.values())


def read_kept(values: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """A recipe that a run keeps, in a checkpoint or in its folder, as it was meant; None: with what is wrong.

    Before there was `evaluation.seed`, the masks of the evaluation were drawn with `training.seed`.
    """
    evaluation, training = values.get("evaluation"), values.get("training")
    if isinstance(evaluation, dict) and isinstance(training, dict) and "seed" in training:
        values = {**values, "evaluation": {"seed": training["seed"], **evaluation}}
    return check_recipe(dict(values))


def record_changes(folder: Path, step: int, changes: Iterable[Change]) -> None:
    """Append what changed to RUN/changes.jsonl, one object a key."""
    lines = [
        {
            "step": step,
            "key": change.key,
            "then": change.then,
            "now": change.now,
            "accepted": change.is_accepted,
        }
        for change in changes
    ]
    with (folder / CHANGES).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _read_then(state: dict[str, Any], place: Path) -> Recipe:
    kept = state.get("recipe")
    recipe, problems = read_kept(kept) if isinstance(kept, dict) else (None, [])
    if recipe is None:
        reasons = "; ".join(map(str, problems)) or "it holds none"
        raise RunError(
            RESUME,
            f"the recipe in {place} is not one that this version reads ({reasons}); go on with the version "
            "that wrote it, or train in another --output",
        )
    return recipe


def _resolve(recipe: Recipe) -> dict[str, Any]:
    """Plain data in which what stands for another value is that value."""
    values = describe_recipe(recipe)
    values["stopping"] = [asdict(condition) for condition in recipe.conditions]
    if len(values["stopping"]) < 2:  # one condition is the same with and without a list around it
        values["stopping"] = values["stopping"][0] if values["stopping"] else None
    values["evaluation"]["best"] = recipe.best.metric
    masking, objective = values["objective"]["masking"], values["objective"]
    if masking["kind"] in ("span", "character_span"):
        masking["mean_span"] = masking["mean_span"] or 3
        masking["max_span"] = masking["max_span"] or 10
    generator = objective.get("generator")
    if generator and generator["num_hidden_layers"] is None:
        generator["share"] = generator["share"] or 0.5
    values["evaluation"]["rate"] = values["evaluation"]["rate"] or masking["rate"]
    return values


def _flatten(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Key paths to values; a list of plain values is a value."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        parts = ((str(index), item) for index, item in enumerate(value))
    else:
        return {} if path and value in (None, []) and path[-1] in _SECTIONS else {path: value}
    return {key: leaf for name, part in parts for key, leaf in _flatten(part, (*path, name)).items()}


_SECTIONS = frozenset(
    (
        "tokenizer",
        "extend",
        "first_phase",
        "clean",
        "normalize",
        "near_duplicates",
        "terms",
        "generator",
        "stopping",
        "spikes",
    )
)


def _find_whole(path: tuple[str, ...], lacking: dict[tuple[str, ...], Any] | None) -> tuple[str, ...]:
    """The shortest part of a path of which one side has nothing; None: both have it."""
    if lacking is None:
        return path
    heads = {key[:length] for key in lacking for length in range(1, len(key) + 1)}
    return next(path[:length] for length in range(1, len(path) + 1) if path[:length] not in heads)


def _take(flat: dict[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    """The value of a path, or what lies below it by the rest of its keys; None: nothing."""
    if path in flat:
        return flat[path]
    below = {".".join(key[len(path) :]): value for key, value in flat.items() if key[: len(path)] == path}
    return below or None


def _is_same(then: Any, now: Any) -> bool:
    if isinstance(then, dict) and isinstance(now, dict):
        return then.keys() == now.keys() and all(_is_same(then[key], now[key]) for key in then)
    return isinstance(then, bool) == isinstance(now, bool) and then == now


def _is_longer(then: float | None, now: float | None) -> bool:
    return now is None or (then is not None and now > then)


def _find_too_short(recipe: Recipe, step: int) -> list[Change]:
    last = recipe.training.max_steps
    return [] if last is None or last >= step else [Change("training.max_steps (done)", step, last, "fixed")]


def _tell(refused: list[Change], changes: list[Change], place: Path) -> str:
    count = "one key differs" if len(refused) == 1 else f"{len(refused)} keys differ"
    lines = [f"the recipe changed under {place}: {count}"]
    lines += [f"{change}; {_remedy(change, place)}" for change in refused]
    allowed = [change for change in changes if change not in refused and change.policy != "free"]
    if allowed:
        lines.append(f"allowed, and not in the way: {', '.join(change.key for change in allowed)}")
    return "\n  ".join(lines)


def _remedy(change: Change, place: Path) -> str:
    if change.key.endswith("(done)"):
        return f"{place.name} has more steps already: give a larger number, or --resume an earlier checkpoint"
    if change.policy in ("flagged", "longer"):
        return f"to go on with it add --accept-changes {change.key}, else restore it"
    if change.policy == "content":
        return "what lies there is not the same text: restore it, or train in another --output"
    return "restore it, or train in another --output (model.source can name this run's weights)"
