"""The runs below a folder: how each stands, how far it is and how good, from a few small reads of each."""

import math
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.events import Event, number
from launch.figure import show_number, show_seconds
from launch.watching.status import Status, find_status, is_run
from launch.watching.view import Best, read_facts
from launch.watching.watch import parse_events

_MAX_DEPTH = 3


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        place: host and process of one that runs.
        step: of the last training step or evaluation, or to which the run has gone back since.
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
    best = Best(facts.best)
    with _open_lines(folder / "metrics.jsonl") as data:
        for event in _find_events(data, "eval", "rewind"):
            best.observe(event)
        step, trained = _find_last(data)
    value, best_step = best.now or (None, None)
    return Row(
        folder=str(folder),
        name=facts.name,
        state=status.state,
        message=status.message,
        exit_code=status.exit_code,
        place=status.place,
        step=step,
        num_steps=facts.num_steps,
        metric=facts.best.metric,
        best=value,
        best_step=best_step,
        loss=number(trained, "loss"),
        changed=_find_change(folder, status),
    )


@contextmanager
def _open_lines(path: Path) -> Iterator[mmap.mmap | bytes]:
    """A metrics file, of which only what is looked at is read; empty where it is not there."""
    with ExitStack() as stack:
        data: mmap.mmap | bytes = b""
        with suppress(OSError, ValueError):  # it is not there, or is empty
            file = stack.enter_context(path.open("rb"))
            data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        yield data


def _find_events(data: mmap.mmap | bytes, *kinds: str) -> Iterator[Event]:
    """The events of some rare kinds, in order: found as bytes, as nearly all lines are training steps."""
    starts: list[int] = []
    for kind in kinds:
        start = data.find(_begin(kind))  # never the first line: the data is logged before step 0
        while start >= 0:
            starts.append(start + 1)
            start = data.find(_begin(kind), start + 1)
    for start in sorted(starts):
        if (end := data.find(b"\n", start)) > 0:
            yield from parse_events([data[start:end]])


def _find_last(data: mmap.mmap | bytes) -> tuple[int, Event]:
    """Where the run is, and its last training step that it has not gone back before; empty: there is none.

    Read from the end: what is logged last may be long.
    """
    step, last = -1, math.inf
    end = data.rfind(b"\n")
    while end > 0:
        start = data.rfind(b"\n", 0, end)
        is_wanted = data[start + 1 : start + 1 + _MAX_BEGIN].startswith(_PLACES)
        for event in parse_events([data[start + 1 : end]]) if is_wanted else ():
            step = event["step"] if step < 0 else step
            if event["kind"] == "train" and event["step"] <= last:
                return step, event
            if event["kind"] == "rewind":
                last = min(last, event["step"])
        end = start
    return max(step, 0), {}


def _begin(kind: str) -> bytes:
    """How a line of this kind begins, with the end of the line before it."""
    return f'\n{{"kind": "{kind}"'.encode()


_PLACES = tuple(_begin(kind)[1:] for kind in ("train", "eval", "rewind"))
_MAX_BEGIN = max(map(len, _PLACES))


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
