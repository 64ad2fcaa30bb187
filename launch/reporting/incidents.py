"""What went wrong in a run and was survived: resumes, skipped steps, spikes, saves that failed, damage."""

import math

from launch.events import INCIDENTS, Event, number
from launch.figure import show_fact
from launch.record import Record
from launch.reporting.table import Table

_NAMES = {
    "resume": "taken up again",
    "skip": "step skipped",
    "spike": "spike of the loss",
    "rewind": "gone back before a spike",
    "save_failed": "save failed",
    "damage": "damaged checkpoint set aside",
}
_MAX_ROWS = 60


def count_incidents(record: Record) -> list[tuple[str, str]]:
    """How often each came, in words and figures; also that nothing did."""
    found = [event for event in record.events.rows if event["kind"] in _NAMES]
    counts = {kind: sum(event["kind"] == kind for event in found) for kind in _NAMES}
    # A run that logs no event for a skipped step counts them all the same.
    counted = [value for _, value in record.events.curve("train", "skipped_steps") if math.isfinite(value)]
    counts["skip"] = max(counts["skip"], int(max(counted, default=0)))
    told = [(_NAMES[kind], f"{count:,}") for kind, count in counts.items() if count]
    return told or [("interruptions, skipped steps, damage, failed saves", "none logged")]


def tabulate_incidents(record: Record) -> Table | None:
    """Each of them in the order in which it came."""
    found = [event for event in record.events.rows if event["kind"] in ("resume", *INCIDENTS)]
    if not found:
        return None
    rows = [[f"{event['step']:,}", _NAMES[event["kind"]], _describe(event)] for event in found[:_MAX_ROWS]]
    more = len(found) - len(rows)
    return Table("", ["step", "what", "in words"], rows, f"and {more:,} more" if more else "")


def _describe(event: Event) -> str:
    message = event.get("message")
    if isinstance(message, str) and message:
        return message.removeprefix("warning: ")
    facts = {key: value for key, value in event.items() if key not in ("kind", "step", "time", "message")}
    return ", ".join(f"{key.replace('_', ' ')}: {show_fact(value)}" for key, value in facts.items())


def has_incidents(record: Record) -> bool:
    """Something was survived."""
    skipped = any(number(event, "skipped_steps") for event in record.events.of("train"))
    return skipped or tabulate_incidents(record) is not None
