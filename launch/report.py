"""The report: one HTML file about a run, or about several side by side, that needs nothing beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from launch.record import Record, describe_status, judge, judge_discriminator, read_record
from launch.redaction import escape_controls
from launch.reporting.answers import BAND_NAMES, list_examples, list_samples, tabulate_words
from launch.reporting.comparison import Comparison, tabulate_groups, tabulate_results, tabulate_settings
from launch.reporting.curves import draw_charts, draw_further, label_runs
from launch.reporting.facts import (
    list_asked,
    list_data,
    list_environment,
    list_key_figures,
    list_plan,
    tabulate_intake,
)
from launch.reporting.figures import tabulate_families, tabulate_fragmentation, tabulate_metrics
from launch.reporting.incidents import count_incidents, tabulate_incidents
from launch.reporting.reality import tabulate_reality


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
    page = render(records)
    path = out or Path(run_folders[0]) / ("report.html" if len(records) == 1 else "comparison.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    # A text may hold half a surrogate pair, which UTF-8 cannot.
    draft.write_bytes(page.encode("utf-8", errors="replace"))
    draft.replace(path)
    return path


def render(records: Sequence[Record]) -> str:
    """The page about some runs."""
    environment = Environment(
        loader=PackageLoader("launch", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_show,
    )
    return environment.get_template("report.html.jinja").render(
        title=" and ".join(dict.fromkeys(record.name for record in records)),
        runs=[_describe(record, label) for record, label in zip(records, label_runs(records), strict=True)],
        charts=draw_charts(records),
        further=draw_further(records),
        comparison=_compare(records) if len(records) > 1 else None,
        bands=BAND_NAMES,
    )


def _show(value: object) -> object:
    """A text as the page may hold it: marks that turn the direction of the rest are written as escapes."""
    return escape_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _describe(record: Record, label: str) -> dict[str, Any]:
    words, words_note = tabulate_words(record)
    return {
        "name": record.name,
        "label": label,
        "description": str(record.recipe.get("description") or ""),
        "status": describe_status(record),
        "verdict": f"{judge(record)} {judge_discriminator(record)}".strip(),
        "gaps": record.gaps,
        "asked": list_asked(record),
        "figures": list_key_figures(record),
        "metrics": tabulate_metrics(record),
        "families": tabulate_families(record),
        "fragmentation": tabulate_fragmentation(record),
        "examples": list_examples(record),
        "samples": list_samples(record),
        "words": words,
        "words_note": words_note,
        "reality": tabulate_reality(record),
        "incident_counts": count_incidents(record),
        "incidents": tabulate_incidents(record),
        "intake": tabulate_intake(record),
        "data": list_data(record),
        "plan": list_plan(record),
        "recipe": record.recipe_text,
        "command": record.command,
        "environment": list_environment(record),
    }


def _compare(records: Sequence[Record]) -> dict[str, Any]:
    comparison = Comparison.of(records)
    return {
        "note": comparison.describe(),
        "results": tabulate_results(comparison),
        "groups": tabulate_groups(comparison),
        "settings": tabulate_settings(comparison),
    }
