"""The report: one HTML file about a run, or about several side by side, that needs nothing beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from launch.chart import Curve, draw_chart, smooth
from launch.events import Event, number
from launch.figure import show_bytes, show_fact, show_number, show_share
from launch.record import (
    YARDSTICKS,
    Record,
    describe_status,
    judge,
    judge_discriminator,
    read_record,
)


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its heading and what to know about it."""

    title: str
    note: str
    svg: Markup


def write_report(run_folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report; its path.

    A folder that is not whole (killed, still running, cut in the middle of a line) gets a report that says
    what is missing.

    Args:
        run_folders: one or more.
        out: the file; default `report.html` in the folder, for several `comparison.html` in the first.

    Raises:
        ValueError: no folder was given, or one does not exist.
    """
    if not run_folders:
        raise ValueError("no run folder was given; name at least one, runs/<recipe name> by default")
    records = [read_record(Path(folder)) for folder in run_folders]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=" and ".join(record.name for record in records),
        runs=[_describe(record) for record in records],
        charts=_draw_charts(records),
        differences=_compare_settings(records),
    )
    path = out or Path(run_folders[0]) / ("report.html" if len(records) == 1 else "comparison.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    # A text may hold half a surrogate pair, which UTF-8 cannot.
    draft.write_bytes(page.encode("utf-8", errors="replace"))
    draft.replace(path)
    return path


def _describe(record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "label": _label(record),
        "description": str(record.recipe.get("description") or ""),
        "status": describe_status(record),
        "verdict": f"{judge(record)} {judge_discriminator(record)}".strip(),
        "gaps": record.gaps,
        "figures": _key_figures(record),
        "samples": _samples(record),
        "data": _data_facts(record),
        "plan": _plan_facts(record),
        "recipe": record.recipe_text,
        "command": record.command,
        "environment": [(key, show_fact(value)) for key, value in record.environment.items()],
    }


def _label(record: Record) -> str:
    """How a run is told from others: by its folder."""
    return record.folder.resolve().name


def _key_figures(record: Record) -> list[tuple[str, str]]:
    last, start = record.evaluation(), record.evaluation(0)
    figures: list[tuple[str, float | None]] = [
        ("perplexity", number(last, "perplexity") if last else None),
        ("at step 0", number(start, "perplexity") if start else None),
    ]
    named = {str(event.get("name")): number(event, "perplexity") for event in record.events.of("yardstick")}
    figures += [(YARDSTICKS.get(name, name).removeprefix("the "), value) for name, value in named.items()]
    shown = [(name, show_number(value)) for name, value in figures if value is not None]
    accuracy = number(last, "accuracy") if last else None
    if accuracy is not None:
        shown.append(("accuracy", show_share(accuracy)))
    for name, label in (
        ("auc", "discriminator AUC"),
        ("loss", "its log-loss"),
        ("base_loss", "of base rate"),
    ):
        value = number(last, f"discriminator_{name}") if last else None
        shown += [(label, f"{value:.4f}")] if value is not None else []
    speeds = [value for _, value in record.events.curve("train", "tokens_per_second")]
    if speeds:
        shown.append(("tokens/s", show_number(sorted(speeds)[len(speeds) // 2])))
    peaks = [value for _, value in record.events.curve("train", "peak_memory_bytes")]
    if peaks:
        shown.append(("peak memory", show_bytes(max(peaks))))
    return shown


def _samples(record: Record) -> list[dict[str, Any]]:
    """The recipe's samples with the first and the last fills."""
    fills = record.events.of("fill")
    texts = list(dict.fromkeys(str(event.get("text")) for event in fills))
    samples = []
    for text in texts:
        own = [event for event in fills if str(event.get("text")) == text]
        views = [own[0]] if len(own) == 1 else [own[0], own[-1]]
        samples.append({"text": text, "views": [_view(event) for event in views]})
    return samples


def _view(event: dict[str, Any]) -> dict[str, Any]:
    places = []
    for place in _objects(event, "places"):
        found = [(str(one.get("piece")), number(one, "probability")) for one in _objects(place, "candidates")]
        known = [(piece, share) for piece, share in found[:4] if share is not None and 0 <= share <= 1]
        places.append([(piece, show_share(share), round(100 * share, 1)) for piece, share in known])
    return {
        "step": f"step {event['step']:,}",
        "completed": str(event.get("completed", "")),
        "places": places,
    }


def _objects(event: dict[str, Any], key: str) -> list[dict[str, Any]]:
    listed = event.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _data_facts(record: Record) -> list[tuple[str, str]]:
    names = {
        "num_documents": "training documents",
        "num_rows": "training rows",
        "num_pieces": "pieces in them",
        "fill": "rows filled to",
        "num_evaluation_documents": "evaluation documents",
        "num_evaluation_rows": "evaluation rows",
    }
    facts: list[tuple[str, str]] = []
    for event in record.events.of("data")[-1:]:
        for key, name in names.items():
            value = number(event, key)
            if value is not None:
                facts.append((name, show_share(value) if key == "fill" else f"{value:,.0f}"))
        dropped = event.get("dropped")
        for reason, count in (dropped if isinstance(dropped, dict) else {}).items():
            facts.append((f"dropped: {reason}", show_fact(count)))
    hidden = [number(event, "num_targets") for event in record.events.of("train")]
    if hidden and hidden[0] is not None:
        counted = [value for value in hidden if value is not None]
        facts.append(("targets a step, mean", show_number(sum(counted) / len(counted))))
    return facts


def _plan_facts(record: Record) -> list[tuple[str, str]]:
    names = {
        "profile": "profile",
        "world_size": "processes",
        "global_batch": "global batch, rows",
        "micro_batch": "micro-batch, rows",
        "accumulation": "micro-batches a step",
        "num_steps": "steps",
        "num_warmup_steps": "warmup steps",
        "num_epochs": "epochs",
        "num_tokens": "tokens",
        "precision": "precision",
        "zero_stage": "ZeRO stage",
        "attention": "attention kernel",
    }
    return [
        (name, show_fact(record.plan[key])) for key, name in names.items() if record.plan.get(key) is not None
    ]


_CHARTS = (
    ("train", "loss", "Training loss", "nats per target; faint: each step, line: running mean"),
    ("eval", "perplexity", "Evaluation perplexity", "on masks that never change; logarithmic"),
    ("train", "discriminator_loss", "Discriminator training loss", "nats per judged piece"),
    ("eval", "discriminator_loss", "Discriminator evaluation loss", "on the same draws for the same weights"),
    ("eval", "discriminator_auc", "Discriminator AUC", "chance is 0.5"),
    ("train", "learning_rate", "Learning rate", ""),
    ("train", "grad_norm", "Gradient norm", "before clipping"),
    ("train", "tokens_per_second", "Tokens per second", "all processes"),
    ("train", "data_wait_fraction", "Time spent waiting for data", "percent"),
)


def _draw_charts(records: Sequence[Record]) -> list[Chart]:
    charts = []
    for kind, key, title, note in _CHARTS:
        is_log = key == "perplexity"
        curves = [_curve(record, kind, key, len(records)) for record in records]
        marks = records[0].yardsticks() if is_log and len(records) == 1 else []
        named = [(YARDSTICKS.get(name, name).removeprefix("the "), value) for name, value in marks]
        svg = draw_chart(title, curves, is_log=is_log, marks=named)
        if svg:
            charts.append(Chart(title, note, Markup(svg)))  # every text in it was escaped
    return charts


def _curve(record: Record, kind: str, key: str, num_runs: int) -> Curve:
    points = record.events.curve(kind, key)
    if key == "data_wait_fraction":
        points = [(step, 100 * value) for step, value in points]
    name = _label(record) if num_runs > 1 else "last"
    if key in ("loss", "grad_norm", "tokens_per_second", "data_wait_fraction"):
        return Curve(name, smooth(points), () if num_runs > 1 else points)
    return Curve(name, points)


def _compare_settings(records: Sequence[Record]) -> dict[str, Any] | None:
    """What differs between several runs, and how they ended."""
    if len(records) < 2:
        return None
    flat = [_flatten(record.recipe) | _flatten({"plan": _own(record.plan)}) for record in records]
    keys = sorted({key for one in flat for key in one})
    rows = [(key, [show_fact(one.get(key)) for one in flat]) for key in keys]
    rows = [(key, values) for key, values in rows if len(set(values)) > 1 and key != "name"]
    ends = [record.evaluation() for record in records]
    results = [
        (name, [_show_metric(end, name) for end in ends]) for name in ("perplexity", "loss", "accuracy")
    ]
    judged = ("discriminator_auc", "discriminator_loss", "discriminator_base_loss")
    results += [
        (name.replace("_", " "), [_show_metric(end, name) for end in ends])
        for name in judged
        if any(end and name in end for end in ends)
    ]
    results += _compare_marks(records)
    return {
        "labels": [_label(record) for record in records],
        "settings": rows,
        "results": results,
        "is_fair": len({_targets(record) for record in records}) == 1,
    }


def _show_metric(event: Event | None, name: str) -> str:
    value = None if event is None else number(event, name)
    if value is None:
        return ""
    return show_share(value) if name == "accuracy" else show_number(value)


def _compare_marks(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """What each run's perplexity is held against: step 0 and the yardsticks."""
    starts = [number(record.evaluation(0) or {}, "perplexity") for record in records]
    marks = [dict(record.yardsticks()) for record in records]
    names = list(dict.fromkeys(name for one in marks for name in one))
    rows = [("at step 0", starts)]
    rows += [
        (YARDSTICKS.get(name, name).removeprefix("the "), [m.get(name) for m in marks]) for name in names
    ]
    return [(name, ["" if v is None else show_number(v) for v in values]) for name, values in rows]


def _targets(record: Record) -> tuple:
    """What tells sets of evaluation targets apart: their number, and what counting makes of them."""
    last = record.evaluation()
    return None if last is None else number(last, "num_targets"), *record.yardsticks()


def _own(plan: dict[str, Any]) -> dict[str, Any]:
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
