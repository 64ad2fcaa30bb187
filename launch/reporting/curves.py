"""Which curves a report shows, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from launch.record import YARDSTICKS, Record
from launch.reporting.drawing import Curve, draw_chart, smooth
from launch.reporting.figures import (
    FAMILIES,
    Groups,
    is_count,
    is_mark,
    list_headlines,
    name_metric,
    read_groups,
    sort_figures,
)
from launch.reporting.inline import clean

_CHARTS = (
    ("train", "loss", "Training loss", "nats per target; faint: each step, line: running mean"),
    ("eval", "perplexity", "Evaluation perplexity", "on masks that never change; logarithmic"),
    ("eval", "accuracy", "Evaluation accuracy", "percent of the targets put first"),
    ("train", "discriminator_loss", "Discriminator training loss", "nats per judged piece"),
    ("eval", "discriminator_loss", "Discriminator evaluation loss", "on the same draws for the same weights"),
    ("eval", "discriminator_auc", "Discriminator AUC", "chance is 0.5"),
    ("train", "learning_rate", "Learning rate", ""),
    ("train", "grad_norm", "Gradient norm", "before clipping"),
    ("train", "tokens_per_second", "Tokens per second", "all processes"),
    ("train", "data_wait_fraction", "Time spent waiting for data", "percent"),
)
_PERCENT = ("data_wait_fraction", "accuracy")
_NOISY = ("loss", "grad_norm", "tokens_per_second", "data_wait_fraction")
_MAX_FURTHER = 30
_MAX_GROUPS = 6


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its heading and what to know about it."""

    title: str
    note: str
    svg: Markup


def draw_charts(records: Sequence[Record]) -> list[Chart]:
    """Loss, evaluation, rate, gradient norm and speed, a chart each with a line for each run."""
    charts = []
    names = _name_curves(records)
    for kind, key, title, note in _CHARTS:
        is_log = key == "perplexity"
        curves = [
            _read_curve(record, name, kind, key, is_alone=len(records) == 1)
            for record, name in zip(records, names, strict=True)
        ]
        marks = records[0].yardsticks() if is_log and len(records) == 1 else []
        named = [(YARDSTICKS.get(name, name).removeprefix("the "), value) for name, value in marks]
        charts += _list_chart(title, note, curves, is_log=is_log, marks=named)
    return charts


def draw_further(records: Sequence[Record]) -> list[Chart]:
    """Every further metric that has a curve in some run; at most 30 charts."""
    groups = _unite_groups(records)
    charts: list[Chart] = []
    for group in list_headlines(groups):
        for figure in sort_figures(list(groups[group])):
            if (
                not is_count(figure)
                and not is_mark(figure)
                and (group != "main" or figure == "accuracy_top5")
            ):
                charts += _draw_metric(records, group, figure)
    for place, title, *_ in FAMILIES:
        own = [group for group in groups if group.startswith(f"{place}/")]
        figures = [
            name for group in own[:1] for name in sort_figures(list(groups[group])) if not is_count(name)
        ]
        if not figures:
            continue
        if len(records) == 1:
            charts += _draw_groups(records[0], place, title, own, figures[0])
        else:
            charts += [chart for group in own for chart in _draw_metric(records, group, figures[0])]
    return charts[:_MAX_FURTHER]


def _unite_groups(records: Sequence[Record]) -> Groups:
    """The groups and figures of all last evaluations, in an order that is not that of the records."""
    united: Groups = {}
    for record in sorted(records, key=lambda record: record.folder.resolve()):
        for group, figures in read_groups(record.evaluation()).items():
            united.setdefault(group, {}).update(figures)
    return united


def _draw_groups(record: Record, place: str, title: str, groups: Sequence[str], figure: str) -> list[Chart]:
    curves = [
        Curve(group.removeprefix(f"{place}/"), record.events.curve("eval", f"eval/{group}/{figure}"))
        for group in groups[:_MAX_GROUPS]
    ]
    is_log = figure.endswith("perplexity")
    note = "perplexity, logarithmic" if is_log else figure.replace("_", " ")
    more = f"; the first {_MAX_GROUPS} of {len(groups)}" if len(groups) > _MAX_GROUPS else ""
    return _list_chart(title, note + more, curves, is_log=is_log)


def _draw_metric(records: Sequence[Record], group: str, figure: str) -> list[Chart]:
    curves = []
    for record, name in zip(records, _name_curves(records), strict=True):
        key = f"eval/{group}/{figure}"
        points, lows, highs = (record.events.curve("eval", key + bound) for bound in ("", "_low", "_high"))
        low_of, high_of = dict(lows), dict(highs)
        band = [
            (step, low_of[step], high_of[step]) for step, _ in points if step in low_of and step in high_of
        ]
        curves.append(Curve(name, points, band=band if len(records) == 1 else ()))
    is_log = figure.endswith("perplexity")
    note = ", ".join(["logarithmic"] * is_log + ["area: 95% interval"] * any(curve.band for curve in curves))
    title = name_metric(group, figure)
    return _list_chart(title[:1].upper() + title[1:], note, curves, is_log=is_log)


def _list_chart(
    title: str,
    note: str,
    curves: Sequence[Curve],
    *,
    is_log: bool = False,
    marks: Sequence[tuple[str, float]] = (),
) -> list[Chart]:
    """The chart, unless there is nothing to see on it."""
    svg = draw_chart(title, curves, is_log=is_log, marks=marks)
    return [Chart(title, note, Markup(svg))] if svg else []  # every text in it was escaped


def label_runs(records: Sequence[Record]) -> list[str]:
    """How each run is told from the others: by the end of its folder's path, as long as they need it."""
    paths = [record.folder.resolve().parts for record in records]
    longest = max(map(len, paths), default=0)
    ends = [["/".join(path[-length:]) for path in paths] for length in range(1, longest + 1)]
    labels = next((one for one in ends if len(set(one)) == len(set(paths))), [])
    # Of a folder that is given twice.
    turns = [labels[:number].count(label) for number, label in enumerate(labels)]
    return [
        clean(f"{label} ({turn + 1})" if turn else label) for label, turn in zip(labels, turns, strict=True)
    ]


def _name_curves(records: Sequence[Record]) -> list[str]:
    return label_runs(records) if len(records) > 1 else ["last"]


def _read_curve(record: Record, name: str, kind: str, key: str, *, is_alone: bool) -> Curve:
    points = record.events.curve(kind, key)
    if key in _PERCENT:
        points = [(step, 100 * value) for step, value in points]
    if key in _NOISY and kind == "train":
        return Curve(name, smooth(points), points if is_alone else ())
    return Curve(name, points)
