"""What a run may be stopped by and its best model be chosen by: the figures that a recipe's evaluation gives.

A `*` in a name is a part that only the data knows: a range of counts, a public suffix.
"""

import difflib
import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launch.recipe_data import Data, name_corpora
from launch.recipe_evaluation import Evaluation, Stopping
from launch.recipe_metrics import Metrics
from launch.recipe_objective import ReplacedTokens

Direction = Literal["lower", "higher"]
Figures = Sequence[str]

_LOWER: tuple[str, ...] = ("loss", "perplexity", "perplexity_low", "perplexity_high", "bits_per_character")
_HIGHER: tuple[str, ...] = (
    "accuracy",
    "accuracy_top5",
    "exact",
    "exact_low",
    "exact_high",
    "macro_f1",
    "auc",
)
_PLAIN: tuple[str, ...] = ("loss", "perplexity", "accuracy")
_PAIR = ("discriminator_loss", "discriminator_auc")
_GROUP: Figures = ("perplexity", "accuracy")
_ALL: Figures = ("loss", "perplexity", "accuracy", "accuracy_top5")
_BOUNDED = ("perplexity", "perplexity_low", "perplexity_high")


@dataclass(frozen=True)
class Condition:
    """A stopping condition with nothing left open.

    Attributes:
        metric: a figure of the evaluation.
        direction: which values are better.
        patience: evaluations without an improvement that end the run; None: it only says what is best.
        threshold: an improvement smaller than this is none; `is_relative`: as a share of the best so far.
    """

    metric: str
    direction: Direction
    patience: int | None = None
    threshold: float = 0.0
    is_relative: bool = False

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best so far by enough; one that is not finite never is."""
        if best is None or not math.isfinite(value):
            return math.isfinite(value)
        margin = self.threshold * abs(best) if self.is_relative else self.threshold
        return value < best - margin if self.direction == "lower" else value > best + margin


def find_direction(metric: str) -> Direction | None:
    """Which values of a figure are better, by its name; None: nobody knows."""
    last = metric.rpartition("/")[2]
    if any(last == name or last.endswith(f"_{name}") for name in _LOWER):
        return "lower"
    if any(last == name or last.endswith(f"_{name}") for name in _HIGHER):
        return "higher"
    return None


def list_conditions(stopping: Stopping | Sequence[Stopping] | None, is_pair: bool) -> tuple[Condition, ...]:
    """The conditions of a recipe, in order.

    Args:
        stopping: the section.
        is_pair: whether a discriminator is trained.
    """
    given = [stopping] if isinstance(stopping, Stopping) else stopping or []
    return tuple(
        Condition(
            metric=metric,
            direction=_resolve_direction(one, metric),
            patience=one.patience,
            threshold=one.threshold,
            is_relative=one.relative,
        )
        for one in given
        for metric in [one.metric or name_default(is_pair)]
    )


def find_best_condition(best: str | None, conditions: Sequence[Condition], is_pair: bool) -> Condition:
    """What the best model is chosen by: any improvement of one figure.

    Args:
        best: `evaluation.best`.
        conditions: of the recipe.
        is_pair: whether a discriminator is trained.
    """
    metric = best or (conditions[0].metric if conditions else name_default(is_pair))
    named: list[Direction] = [one.direction for one in conditions if one.metric == metric]
    direction: Direction | None = named[0] if named else find_direction(metric)
    return Condition(metric, direction or "lower")


def find_best_rule(recipe: dict[str, Any]) -> Condition:
    """The same, of a recipe that is plain data, also one that this version would not read."""
    evaluation, stopping = recipe.get("evaluation"), recipe.get("stopping")
    objective = recipe.get("objective")
    given = stopping if isinstance(stopping, list) else [stopping]
    sections = [section for section in given if isinstance(section, dict)]
    conditions = []
    is_pair = isinstance(objective, dict) and objective.get("kind") == "rtd"
    for section in sections:
        metric = str(section.get("metric") or name_default(is_pair))
        wanted = section.get("direction")
        named: Direction | None = "lower" if wanted == "lower" else "higher" if wanted == "higher" else None
        conditions.append(Condition(metric, named or find_direction(metric) or "lower"))
    best = evaluation.get("best") if isinstance(evaluation, dict) else None
    return find_best_condition(best if isinstance(best, str) else None, conditions, is_pair)


def name_default(is_pair: bool) -> str:
    """The figure that is meant where none is named."""
    return "discriminator_loss" if is_pair else "loss"


def check_stopping(parts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the sections say against each other about stopping and the best model, as (key path, message).

    Args:
        parts: the valid sections by name.
    """
    evaluation, data, objective, stopping = (
        parts.get(name) for name in ("evaluation", "data", "objective", "stopping")
    )
    if not isinstance(evaluation, Evaluation) or objective is None:
        return []
    is_pair = isinstance(objective, ReplacedTokens)
    known = list_figures(evaluation, data, is_pair)
    sections = stopping if isinstance(stopping, list) else [] if stopping is None else [stopping]
    found: list[tuple[str, str]] = []
    directions: dict[str, Direction] = {}
    for number, section in enumerate(sections):
        place = f"stopping.{number}" if isinstance(stopping, list) else "stopping"
        metric = section.metric or name_default(is_pair)
        found += _check_metric(f"{place}.metric", metric, known)
        if metric in directions:
            found.append((f"{place}.metric", f"{metric} has a condition already; give it one"))
        if section.direction == "auto" and find_direction(metric) is None and _is_known(metric, known):
            text = f"say whether lower or higher values of {metric} are better; its name does not tell"
            found.append((f"{place}.direction", text))
        directions[metric] = _resolve_direction(section, metric)
    if evaluation.best is not None:
        found += _check_metric("evaluation.best", evaluation.best, known)
        is_open = find_direction(evaluation.best) is None and evaluation.best not in directions
        if is_open and _is_known(evaluation.best, known):
            text = f"whether lower or higher values of {evaluation.best} are better is not known; give it a"
            found.append(("evaluation.best", f"{text} condition in stopping with a direction"))
    return found


def list_figures(evaluation: Evaluation, data: Data | None, is_pair: bool) -> list[str]:
    """The figures that an evaluation gives and that training can move, counts left out."""
    names = [*_PLAIN, *(_PAIR if is_pair else ())]
    wanted = evaluation.metrics
    if not isinstance(wanted, Metrics):
        return names
    found: list[tuple[str, Figures]] = _list_corpus("main", ["accuracy_top5"], wanted)
    if data is not None and len(data.sources) > 1:
        found += [(name, _ALL) for name in name_corpora(data.sources)]
    if wanted.general:
        found += _list_corpus("general", _ALL, wanted)
    found += [(f"main/probes/{probe.name}", ["accuracy", "macro_f1"]) for probe in wanted.probes]
    return [*names, *(f"eval/{place}/{figure}" for place, figures in found for figure in figures)]


def _list_corpus(place: str, figures: Figures, wanted: Metrics) -> list[tuple[str, Figures]]:
    """The figures of a corpus; `figures` are those of all its targets together."""
    found: list[tuple[str, Figures]] = [
        (place, figures),
        (f"{place}/recovery", ["exact"]),
        (f"{place}/recovery/*", ["exact"]),
    ]
    if wanted.rare_words:
        found.append((f"{place}/rare_words/*", [*_GROUP, "word_perplexity"]))
    if wanted.names:
        found += [(f"{place}/names/{kind}/*", _GROUP) for kind in ("place", "length", "suffix", "part")]
    if wanted.names and wanted.names.max_span:
        found.append((f"{place}/names/span/*", ["exact", "exact_low", "exact_high", "perplexity"]))
    if wanted.terms:
        parts = ["", *(f"/{name}" for name in wanted.terms.lists)]
        found += [(f"{place}/terms{part}", [*_BOUNDED, "term_perplexity", "exact"]) for part in parts]
    if wanted.pseudo:
        found.append((f"{place}/pseudo", [*_BOUNDED, "bits_per_character", "accuracy", "exact"]))
    return found


def suggest(metric: str, known: Iterable[str]) -> str:
    """What to write in place of a figure that is not there, in words."""
    names = list(known)
    near = difflib.get_close_matches(metric, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    shown = ", ".join(names[:12])
    return f"known: {shown}{', ...' if len(names) > 12 else ''}"


def _is_known(metric: str, known: Iterable[str]) -> bool:
    # `*` is one part of a name, never several.
    return any(
        metric.count("/") == name.count("/") and "*" not in metric and fnmatch.fnmatchcase(metric, name)
        for name in known
    )


def _check_metric(key: str, metric: str, known: Sequence[str]) -> list[tuple[str, str]]:
    if _is_known(metric, known):
        return []
    if metric in _PAIR:
        return [(key, f"{metric} is of objective.kind: rtd; take loss here")]
    hint = suggest(metric, known)
    wanted = (
        ""
        if any(name.startswith("eval/") for name in known) or not metric.startswith("eval/")
        else ("; for further figures evaluation.metrics is a mapping")
    )
    return [(key, f"this recipe's evaluation gives no {metric}; {hint}{wanted}")]


def _resolve_direction(section: Stopping, metric: str) -> Direction:
    if section.direction != "auto":
        return section.direction
    return find_direction(metric) or "lower"
