"""The events of a run: metrics.jsonl, one JSON object a line, as far as it can be read."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]

_MARKS = ("start", "resume", "end")
_TURNS = ("start", "resume", "rewind")
INCIDENTS = ("skip", "spike", "rewind", "save_failed", "damage")
"""What went wrong and was survived. It happened, also where the run went back before it."""
_LASTING = (*_MARKS, *INCIDENTS)
_MOST_STEPS = 2**53  # what is more is no count, and no number of a chart
_WITH_STEP = ("train", "eval", "fill", "save", "resume", "rewind", "example", "words")


@dataclass(frozen=True)
class Events:
    """What a run logged, in the order of the file; of an event logged twice the later one.

    Attributes:
        rows: events, each with a `kind` and a `step`.
        num_unreadable: lines that are no event, the cut one apart.
        is_cut: the last line ends in the middle, as a killed run leaves it.
    """

    rows: list[Event] = field(default_factory=list)
    num_unreadable: int = 0
    is_cut: bool = False

    def of(self, kind: str) -> list[Event]:
        """The events of one kind by step; marks and incidents in the order of the file."""
        events = [event for event in self.rows if event["kind"] == kind]
        return events if kind in _LASTING else sorted(events, key=lambda event: event["step"])

    def curve(self, kind: str, key: str) -> list[tuple[int, float]]:
        """(step, value) by step; events without a number under `key` are left out, NaN stays in."""
        found = ((event["step"], number(event, key)) for event in self.of(kind))
        return [(step, value) for step, value in found if value is not None]

    @property
    def marks(self) -> list[Event]:
        """Starts, resumes and ends, in the order of the file."""
        return [event for event in self.rows if event["kind"] in _MARKS]

    @property
    def last_step(self) -> int:
        """The highest step that training or evaluation reached; 0 when there is none."""
        return max((event["step"] for event in self.rows if event["kind"] in ("train", "eval")), default=0)


def number(event: Event, key: str) -> float | None:
    """The number under `key`; None where there is none (a bool or a text is none)."""
    value = event.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def to_plain(value: Any) -> Any:
    """A value for JSON, which has no word for numbers that are not finite: they are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_events(path: Path) -> Events:
    """Read a metrics file, also one that is still written or was cut. A missing file has no events.

    A start, resume or rewind at step s takes back every earlier event beyond s but marks and incidents: that
    branch of the run is gone.
    """
    if not path.exists():
        return Events()
    *whole, last = path.read_bytes().split(b"\n")
    parsed = [parse_event(line) for line in whole if line.strip()]
    rows = [event for event in parsed if event is not None]
    tail = parse_event(last) if last.strip() else None
    if tail is not None:
        rows.append(tail)
    return Events(
        keep_later(rows),
        len(parsed) - sum(e is not None for e in parsed),
        bool(last.strip()) and tail is None,
    )


def parse_event(line: bytes) -> Event | None:
    """The event of a line, with its step; None: it is none, as a crash or a full disk cut it short."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    step = event.get("step", None if event["kind"] in _WITH_STEP else 0)
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= _MOST_STEPS:
        return None
    return {**event, "step": step}


def keep_later(rows: Iterable[Event]) -> list[Event]:
    """Of an event that was logged twice the later one, and none of a course that was left (`read_events`)."""
    kept: dict[tuple, Event] = {}
    for index, event in enumerate(rows):
        kind, step = event["kind"], event["step"]
        if kind in _TURNS:
            kept = {k: e for k, e in kept.items() if e["kind"] in _LASTING or e["step"] <= step}
        key = (
            (kind, index)
            if kind in _LASTING
            else (kind, step, *(str(event.get(k)) for k in ("name", "text", "path", "row")))
        )
        kept.pop(key, None)
        kept[key] = event
    return list(kept.values())
