"""The ranking: the runs of a sweep by their best evaluation, and how far each is from the best one."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.figure import show_number
from launch.record import Record, are_same_targets, read_record
from launch.sweeping.axes import name_values
from launch.sweeping.state import Entry, Goal

_SEED = "training.seed"


@dataclass(frozen=True)
class Standing:
    """A run and what it reached.

    Attributes:
        entry: of the sweep.
        value: the best one of the metric; None: it has no evaluation that is a number.
        step: that it is from.
        targets: what tells sets of evaluation targets apart; None: it has no evaluation.
    """

    entry: Entry
    value: float | None
    step: int | None
    targets: tuple | None = None


def measure(record: Record, goal: Goal) -> tuple[float, int] | None:
    """The best finite value of a metric and its step; of equal ones the earlier."""
    finite = [(v, s) for s, v in record.events.curve("eval", goal.metric) if math.isfinite(v)]
    return min(finite, key=lambda found: (goal.sign * found[0], found[1])) if finite else None


def rank(entries: Sequence[Entry], folder: Path, goal: Goal) -> list[Standing]:
    """The runs with a folder, the best first; those without a figure last, in their order."""
    standings = []
    for entry in entries:
        if not (folder / entry.name).is_dir():
            continue
        record = read_record(folder / entry.name)
        found = measure(record, goal)
        value, step = found or (None, None)
        standings.append(Standing(entry, value, step, record.targets))
    return sorted(standings, key=lambda one: math.inf if one.value is None else goal.sign * one.value)


def is_fair(standings: Sequence[Standing]) -> bool:
    """Whether all that are ranked were judged on the same targets."""
    return are_same_targets(one.targets for one in standings if one.value is not None)


def find_baseline(standings: Sequence[Standing], own: Mapping[str, Any]) -> Standing | None:
    """The run whose values are the recipe's own, if there is one with a figure and it is not the best."""
    found = next((one for one in standings if one.entry.values == own and one.value is not None), None)
    return None if found in standings[:1] else found


def list_rows(standings: Sequence[Standing], baseline: Standing | None) -> list[list[str]]:
    """A row for each: place, run, value, step, difference to the best (and the baseline), how it ended."""
    best = standings[0].value if standings else None
    rows = []
    for place, one in enumerate(standings, 1):
        row = [
            str(place) if one.value is not None else "",
            one.entry.name,
            "" if one.value is None else show_value(one.value),
            "" if one.step is None else f"{one.step:,}",
            _show_difference(one.value, best),
        ]
        if baseline is not None:
            row.append("baseline" if one is baseline else _show_difference(one.value, baseline.value))
        rows.append([*row, one.entry.state if one.entry.exit_code in (0, None, 143) else _tell(one.entry)])
    return rows


def list_columns(metric: str, baseline: Standing | None) -> list[str]:
    """The heads of those rows."""
    return [
        "", "run", metric, "at step", "to the best",
        *([] if baseline is None else ["to the recipe"]), "state",
    ]  # fmt: skip


def _tell(entry: Entry) -> str:
    return f"{entry.state} (exit {entry.exit_code})"


def _show_difference(value: float | None, other: float | None) -> str:
    if value is None or other is None:
        return ""
    if value == other:
        return "0"
    share = f" ({value / other - 1:+.1%})" if other > 0 else ""
    return f"{'+' if value > other else '-'}{show_number(abs(value - other))}{share}"


def show_value(value: float) -> str:
    """Four decimals for what is near one, as losses and rates are."""
    return f"{value:.4f}" if 0.0001 <= abs(value) < 100 else show_number(value)


def average_over_seeds(standings: Sequence[Standing], goal: Goal) -> list[list[str]]:
    """Of runs that differ in the seed alone: the mean, its spread, and how many; the best first.

    Empty unless some combination has several seeds. The spread is the standard deviation of one run.
    """
    groups: dict[str, list[float]] = {}
    for one in standings:
        rest = {key: value for key, value in one.entry.values.items() if key != _SEED}
        if one.value is not None and _SEED in one.entry.values:
            groups.setdefault(name_values(rest) or "all", []).append(one.value)
    if all(len(values) < 2 for values in groups.values()):
        return []
    ordered = sorted(groups.items(), key=lambda item: goal.sign * statistics.fmean(item[1]))
    return [
        [
            name,
            show_value(statistics.fmean(values)),
            show_number(statistics.stdev(values)) if len(values) > 1 else "",
            str(len(values)),
        ]
        for name, values in ordered
    ]
