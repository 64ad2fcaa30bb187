"""Several runs side by side: figures with their difference to the first, and what was asked differently."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from launch.events import Event, number
from launch.figure import show_fact, show_number
from launch.record import YARDSTICKS, Record, are_same_targets, describe_status
from launch.reporting.curves import label_runs
from launch.reporting.figures import (
    FAMILIES,
    Groups,
    compare,
    is_count,
    is_mark,
    list_headlines,
    name_metric,
    read_groups,
    show_figure,
    sort_figures,
)
from launch.reporting.reality import measure
from launch.reporting.table import Cell, Table

_MAX_FURTHER = 200
# A word that the end of a row cuts counts twice, and rows of other pieces end elsewhere.
_MOST_CUT_WORDS = 0.01
Figures = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What differences of some runs can be told.

    Attributes:
        records: the runs, in their order.
        labels: of each.
        base: number of the run that the others are held against, the first that was evaluated.
    """

    records: Sequence[Record]
    labels: Sequence[str]
    base: int

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Comparison":
        """Compare some runs."""
        judged = (number for number, record in enumerate(records) if record.targets is not None)
        return cls(records, label_runs(records), next(judged, 0))

    @cached_property
    def ends(self) -> list[Groups]:
        """The figures of the last evaluations."""
        return [read_groups(record.evaluation()) for record in self.records]

    @cached_property
    def others(self) -> frozenset[int]:
        """Numbers of the runs that were evaluated on other targets than the base."""
        base = self.records[self.base].targets
        return frozenset(
            number
            for number, record in enumerate(self.records)
            if not are_same_targets((base, record.targets))
        )

    def is_comparable(self, number: int, group: str, figure: str) -> bool:
        """Whether a figure of a run and that of the base are of the same things."""
        first, own = (self.ends[which].get(group, {}) for which in (self.base, number))
        if number == self.base or figure not in first or figure not in own:
            return False
        return number not in self.others or is_same_measure(group, figure, first, own)

    def describe(self) -> str:
        """Which runs were evaluated on other targets, and what is compared all the same; else empty."""
        if not self.others:
            return ""
        told = {
            _describe_measure(group, figure): None
            for number in sorted(self.others)
            for group, figures in self.ends[number].items()
            for figure in sort_figures(list(figures))
            if not is_count(figure) and not is_mark(figure) and self.is_comparable(number, group, figure)
        }
        runs = " and ".join(self.labels[number] for number in sorted(self.others))
        return (
            f"{runs}: evaluated on other targets than {self.labels[self.base]} (their number or the "
            "yardsticks differ), as with another tokenizer, other masks or other rows. A loss, a perplexity "
            "or an accuracy of targets is then of other pieces and cannot be compared with that of the other "
            f"run, only with its own yardsticks. {_tell_measures(list(told))}"
        )


def is_same_measure(group: str, figure: str, first: Figures, own: Figures) -> bool:
    """Whether a figure of two runs with different targets is of the same words or texts all the same.

    Their counts must be there and tell it.
    """
    if group.partition("/")[2].startswith("fragmentation"):
        counts = ("num_words",) if figure == "pieces_per_word" else ("num_words", "num_terms")
        return all(_is_near(first.get(name), own.get(name)) for name in counts)
    counts = _find_counts(group, figure)
    return bool(counts) and all(name in first and first[name] == own.get(name) for name in counts)


def _is_near(first: float | None, own: float | None) -> bool:
    return first is not None and own is not None and abs(own - first) <= _MOST_CUT_WORDS * first


def _find_counts(group: str, figure: str) -> tuple[str, ...]:
    """What must be equal for a figure to be of the same words or texts; empty: nothing can tell."""
    place = group.partition("/")[2]
    if place.split("/")[0] == "terms" and figure in ("term_perplexity", "exact"):
        return "num_occurrences", "num_terms"
    if place.startswith("probes/"):
        # The commonest class's figures tell these examples from as many others.
        return "num_examples", "majority_accuracy", "majority_macro_f1"
    return ("num_characters",) if figure == "bits_per_character" else ()


def _describe_measure(group: str, figure: str) -> str:
    family = next((place for place, *_ in FAMILIES if group.startswith(f"{place}/")), group)
    return name_metric(family.removesuffix("/base"), figure)


def _tell_measures(names: Sequence[str]) -> str:
    if not names:
        return "No figure of theirs is known to be of the same words or texts, so that none is compared."
    return f"Compared are figures of the same words or texts: {', '.join(names)}."


def tabulate_results(comparison: Comparison) -> Table:
    """The figures of the last evaluations, with differences against the base."""
    records = comparison.records
    rows: list[list[str | Cell]] = [["status", *(describe_status(record) for record in records)]]
    groups = {group: None for end in comparison.ends for group in list_headlines(end)}
    for group in groups:
        rows += _compare_group(comparison, group)
    rows += _list_marks(records) + _list_speeds(comparison)
    note = (
        f"Differences are against {comparison.labels[comparison.base]}: shares in percentage points, the "
        "rest in percent. Within interval: inside the 95% interval of that run, so that it may be chance."
    )
    return Table("", ["last evaluation", *comparison.labels], rows, note)


def tabulate_groups(comparison: Comparison) -> Table | None:
    """Further figures: terms by category, rare words, names and the like."""
    ends = comparison.ends
    headlines = {group for end in ends for group in list_headlines(end)}
    groups = [group for group in dict.fromkeys(g for end in ends for g in end) if group not in headlines]
    rows = [row for group in groups for row in _compare_group(comparison, group)]
    if not rows:
        return None
    return Table("", ["group", *comparison.labels], rows[:_MAX_FURTHER])


def _compare_group(comparison: Comparison, group: str) -> list[list[str | Cell]]:
    """Rows of a group's figures; a difference stands where they are of the same things."""
    ends = comparison.ends
    figures = sort_figures([name for end in ends for name in end.get(group, {})])
    first = ends[comparison.base].get(group, {})
    rows: list[list[str | Cell]] = []
    for figure in (name for name in figures if not is_count(name)):
        row: list[str | Cell] = [name_metric(group, figure)]
        for index, end in enumerate(ends):
            value = end.get(group, {}).get(figure)
            if value is None:
                row.append("")
            elif comparison.is_comparable(index, group, figure):
                row.append(_judge(first, figure, value))
            else:
                row.append(show_figure(figure, value))
        rows.append(row)
    return rows


def _judge(first: dict[str, float], figure: str, value: float) -> Cell:
    note, tone = compare(figure, first[figure], value)
    low, high = first.get(f"{figure}_low"), first.get(f"{figure}_high")
    if tone and low is not None and high is not None and low <= value <= high:
        return Cell(show_figure(figure, value), f"{note.split(',')[0]}, within interval")
    return Cell(show_figure(figure, value), note, tone)


def _list_marks(records: Sequence[Record]) -> list[list[str | Cell]]:
    """What each run's perplexity is held against: step 0, the best evaluation and the yardsticks."""
    starts = [number(record.evaluation(0) or {}, "perplexity") for record in records]
    marks = [dict(record.yardsticks()) for record in records]
    names = list(dict.fromkeys(name for one in marks for name in one))
    rows: list[list[str | Cell]] = [["at step 0", *map(_show, starts)]]
    rows.append(["best evaluation", *(_tell_best(record) for record in records)])
    for name in names:
        rows.append([YARDSTICKS.get(name, name).removeprefix("the "), *(_show(m.get(name)) for m in marks)])
    return rows


def _tell_best(record: Record) -> str:
    curve = [(value, step) for step, value in record.events.curve("eval", "perplexity") if value == value]
    return f"{show_number(min(curve)[0])} at step {min(curve)[1]:,}" if curve else ""


def _show(value: float | None) -> str:
    return "" if value is None else show_number(value)


def _list_speeds(comparison: Comparison) -> list[list[str | Cell]]:
    found = [measure(record) for record in comparison.records]
    speeds = [None if one is None else one.tokens_per_second for one in found]
    first = speeds[comparison.base]
    row: list[str | Cell] = ["tokens a second, median"]
    for index, speed in enumerate(speeds):
        if speed is None:
            row.append("")
        elif index == comparison.base or not first:
            row.append(show_number(speed))
        else:
            row.append(Cell(show_number(speed), *compare("tokens_per_second", first, speed)))
    return [row]


def tabulate_settings(comparison: Comparison) -> Table | None:
    """The keys of recipe and plan that differ."""
    records = comparison.records
    flat = [_flatten(record.recipe) | _flatten({"plan": _list_own(record.plan)}) for record in records]
    keys = sorted({key for one in flat for key in one})
    rows = [[key, *(show_fact(one.get(key)) for one in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1 and row[0] != "name"]
    return Table("", ["key", *comparison.labels], rows) if rows else None


def _list_own(plan: Event) -> dict[str, Any]:
    """What the plan adds to the recipe, without what only names places."""
    keys = ("profile", "world_size", "micro_batch", "accumulation", "precision", "zero_stage")
    return {key: plan.get(key) for key in keys}


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        key: value
        for name, below in tree.items()
        for key, value in _flatten(below, f"{path}.{name}" if path else str(name)).items()
    }
