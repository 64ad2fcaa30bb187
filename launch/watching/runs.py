"""The runs below a folder: how each stands, how far it is and how good, from a few small reads of each."""

import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.events import Event, number
from launch.figure import show_number, show_seconds
from launch.watching.status import Status, find_status, is_run, read_tail
from launch.watching.view import Facts, read_facts
from launch.watching.watch import parse_events

_TAIL_BYTES = 1 << 15
_MAX_DEPTH = 3
_EVALUATION = b'\n{"kind": "eval"'


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        place: host and process of one that runs.
        best: value and step of the best evaluation, by the recipe's own figure `metric`.
        loss: of the last training step.
        changed: when something was last logged, in seconds since 1970.
    """

    folder: str
    name: str
    state: str
    message: str
    exit_code: int | None
    place: str
    step: int
    num_steps: int
    metric: str
    best: float | None
    best_step: int | None
    loss: float | None
    changed: float


def list_runs(folder: Path) -> list[Row]:
    """The runs in a folder and in folders below it, the one last changed first."""
    rows = [_read_row(place) for place in find_runs(folder)]
    return sorted(rows, key=lambda row: -row.changed)


def find_runs(folder: Path, depth: int = _MAX_DEPTH) -> Iterator[Path]:
    """Run folders: the folder itself, or those below it (a sweep has its runs in one of its own)."""
    if is_run(folder) or find_status(folder).state != "new":
        yield folder
        return
    if depth == 0 or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        yield from find_runs(folder / name, depth - 1)


def _read_row(folder: Path) -> Row:
    facts, status = read_facts(folder), find_status(folder)
    path = folder / "metrics.jsonl"
    events = list(parse_events(read_tail(path, _TAIL_BYTES)))
    trained = [event for event in events if event["kind"] == "train"]
    best = _find_best(path, facts)
    steps = [event["step"] for event in events if event["kind"] in ("train", "eval")]
    return Row(
        folder=str(folder),
        name=facts.name,
        state=status.state,
        message=status.message,
        exit_code=status.exit_code,
        place=status.place,
        step=max(steps, default=0),
        num_steps=facts.num_steps,
        metric=facts.best.metric,
        best=best[0] if best else None,
        best_step=best[1] if best else None,
        loss=number(trained[-1], "loss") if trained else None,
        changed=_find_change(folder, status),
    )


def _find_best(path: Path, facts: Facts) -> tuple[float, int] | None:
    best: tuple[float, int] | None = None
    for event in _find_evaluations(path):
        value = number(event, facts.best.metric)
        if value is not None and facts.best.improves(value, best and best[0]):
            best = (value, event["step"])
    return best


def _find_evaluations(path: Path) -> Iterator[Event]:
    """The evaluations of a metrics file: found as bytes, as nearly all lines are training steps."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(_EVALUATION)  # never the first line: the data is logged before step 0
            while start >= 0 and (end := data.find(b"\n", start + 1)) > 0:
                yield from parse_events([data[start + 1 : end]])
                start = data.find(_EVALUATION, end)
    except (OSError, ValueError):  # it is not there, or is empty
        return


def _find_change(folder: Path, status: Status) -> float:
    times = [beat.touched / 1e9 for beat in status.beats]
    for name in ("metrics.jsonl", "plan.json", "verdict.json"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def as_dict(row: Row) -> dict[str, Any]:
    """For JSON."""
    return asdict(row)


def tabulate(rows: list[Row], folder: Path, now: float | None = None) -> tuple[list[str], list[list[str]]]:
    """Columns, and the cells of each run, for a person."""
    now = time.time() if now is None else now
    columns = ["run", "state", "step", "best", "loss", "changed"]
    return columns, [_show_row(row, folder, now) for row in rows]


def _show_row(row: Row, folder: Path, now: float) -> list[str]:
    place = Path(row.folder)
    name = str(place.relative_to(folder)) if place != folder and place.is_relative_to(folder) else str(place)
    best = "-"
    if row.best is not None:
        metric = "" if row.metric == "loss" else f"{row.metric} "
        best = f"{metric}{row.best:.4f} at {row.best_step:,}"
    state = row.state
    if row.state == "running" and row.place:
        state = f"running on {row.place}"
    elif row.state == "failed":
        state = f"failed, exit {row.exit_code}"
    return [
        name,
        state,
        f"{row.step:,}/{row.num_steps:,}" if row.num_steps else f"{row.step:,}",
        best,
        "-" if row.loss is None else show_number(row.loss),
        f"{show_seconds(max(now - row.changed, 0))} ago" if row.changed else "-",
    ]
