"""Several runs side by side: figures with their difference to the first, and what was asked differently."""

from collections.abc import Sequence
from typing import Any

from launch.events import Event, number
from launch.figure import show_fact, show_number
from launch.record import YARDSTICKS, Record, describe_status
from launch.reporting.curves import label_run
from launch.reporting.figures import (
    Groups,
    compare,
    is_count,
    list_headlines,
    name_metric,
    read_groups,
    show_figure,
    sort_figures,
)
from launch.reporting.reality import measure
from launch.reporting.table import Cell, Table

_MAX_FURTHER = 200


def is_fair(records: Sequence[Record]) -> bool:
    """All were evaluated on the same targets, as far as their number and the yardsticks tell."""
    return len({_tell_targets(record) for record in records}) == 1


def _tell_targets(record: Record) -> tuple:
    last = record.evaluation()
    return None if last is None else number(last, "num_targets"), *record.yardsticks()


def tabulate_results(records: Sequence[Record]) -> Table:
    """The figures of the last evaluations, with differences against the first run."""
    ends = [read_groups(record.evaluation()) for record in records]
    rows: list[list[str | Cell]] = [["status", *(describe_status(record) for record in records)]]
    groups = {group: None for end in ends for group in list_headlines(end)}
    for group in groups:
        rows += _compare_group(ends, group, is_same=is_fair(records))
    rows += _list_marks(records) + _list_speeds(records)
    note = (
        f"Differences are against {label_run(records[0])}: shares in percentage points, the rest in percent. "
        "Within interval: inside the 95% interval of the first run, so that it may be chance."
    )
    return Table("", ["last evaluation", *(label_run(record) for record in records)], rows, note)


def tabulate_groups(records: Sequence[Record]) -> Table | None:
    """Further figures: terms by category, rare words, names and the like."""
    ends = [read_groups(record.evaluation()) for record in records]
    headlines = {group for end in ends for group in list_headlines(end)}
    groups = [group for group in dict.fromkeys(g for end in ends for g in end) if group not in headlines]
    rows = [row for group in groups for row in _compare_group(ends, group, is_same=is_fair(records))]
    if not rows:
        return None
    return Table("", ["group", *(label_run(record) for record in records)], rows[:_MAX_FURTHER])


def _compare_group(ends: Sequence[Groups], group: str, *, is_same: bool) -> list[list[str | Cell]]:
    """Rows of a group's figures; a difference stands where the targets are the same."""
    figures = sort_figures([name for end in ends for name in end.get(group, {})])
    rows: list[list[str | Cell]] = []
    for figure in (name for name in figures if not is_count(name)):
        first = ends[0].get(group, {})
        row: list[str | Cell] = [name_metric(group, figure)]
        for index, end in enumerate(ends):
            value = end.get(group, {}).get(figure)
            if value is None:
                row.append("")
            elif index == 0 or not is_same or figure not in first:
                row.append(show_figure(figure, value))
            else:
                row.append(_judge(first, figure, value))
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


def _list_speeds(records: Sequence[Record]) -> list[list[str | Cell]]:
    found = [measure(record) for record in records]
    speeds = [None if one is None else one.tokens_per_second for one in found]
    row: list[str | Cell] = ["tokens a second, median"]
    for index, speed in enumerate(speeds):
        if speed is None:
            row.append("")
        elif index == 0 or not speeds[0]:
            row.append(show_number(speed))
        else:
            row.append(Cell(show_number(speed), *compare("tokens_per_second", speeds[0], speed)))
    return [row]


def tabulate_settings(records: Sequence[Record]) -> Table | None:
    """The keys of recipe and plan that differ."""
    flat = [_flatten(record.recipe) | _flatten({"plan": _list_own(record.plan)}) for record in records]
    keys = sorted({key for one in flat for key in one})
    rows = [[key, *(show_fact(one.get(key)) for one in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1 and row[0] != "name"]
    return Table("", ["key", *(label_run(record) for record in records)], rows) if rows else None


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
