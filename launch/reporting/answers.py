"""What the model answers: masked rows with its fills, the recipe's samples, words with high and low loss."""

from typing import Any

from launch.events import Event, number
from launch.figure import show_number, show_share
from launch.record import Record
from launch.reporting.table import Table

_BANDS = ((1, "r1"), (5, "r2"), (50, "r3"))
"""Ranks up to which a class of the page goes; the last class has the rest."""
BAND_NAMES = {"r1": "rank 1", "r2": "ranks 2 to 5", "r3": "ranks 6 to 50", "r4": "ranks above 50"}
_MAX_FILLS = 5


def list_examples(record: Record) -> list[dict[str, Any]]:
    """The masked rows of the last step that has some."""
    events = record.events.of("example")
    last = max((event["step"] for event in events), default=0)
    shown = [_view_example(event) for event in events if event["step"] == last]
    return [example for example in shown if example["places"]]


def _view_example(event: Event) -> dict[str, Any]:
    parts, places = [], []
    for part in list_objects(event, "parts"):
        if isinstance(part.get("text"), str):
            parts.append({"text": part["text"], "band": ""})
            continue
        rank, loss = number(part, "rank"), number(part, "loss")
        if rank is None or rank != rank or rank < 1:
            continue
        place = {
            "number": len(places) + 1,
            "text": str(part.get("hidden", "")).strip() or "\u2423",
            "rank": f"{min(rank, 1e12):,.0f}",
            "band": find_band(rank),
            "shown": str(part.get("shown", "")),
            "loss": "" if loss is None else f"{loss:.2f}",
            "fills": view_fills(part, "fills"),
        }
        parts.append(place)
        places.append(place)
    mean = number(event, "loss")
    return {
        "parts": parts,
        "places": places,
        "title": f"evaluation row {event.get('row')}",
        "loss": "" if mean is None else f"{mean:.2f} nats a target",
    }


def find_band(rank: float) -> str:
    """The class of the page for a rank."""
    return next((name for most, name in _BANDS if rank <= most), "r4")


def view_fills(place: dict[str, Any], key: str) -> list[tuple[str, str, float]]:
    """Fills as (piece, share in words, percent)."""
    found = [(str(one.get("piece")), number(one, "probability")) for one in list_objects(place, key)]
    known = [(piece, share) for piece, share in found if share is not None and 0 <= share <= 1]
    return [(piece, show_share(share), round(100 * share, 1)) for piece, share in known[:_MAX_FILLS]]


def list_samples(record: Record) -> list[dict[str, Any]]:
    """The recipe's samples with the first and the last fills."""
    fills = record.events.of("fill")
    texts = list(dict.fromkeys(str(event.get("text")) for event in fills))
    samples = []
    for text in texts:
        own = [event for event in fills if str(event.get("text")) == text]
        views = [own[0]] if len(own) == 1 else [own[0], own[-1]]
        samples.append({"text": text, "views": [_view_sample(event) for event in views]})
    return samples


def _view_sample(event: Event) -> dict[str, Any]:
    return {
        "step": f"step {event['step']:,}",
        "completed": str(event.get("completed", "")),
        "places": [view_fills(place, "candidates") for place in list_objects(event, "places")],
    }


def list_objects(event: Event, key: str) -> list[dict[str, Any]]:
    """The mappings in a list of an event; nothing where it has none."""
    listed = event.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def tabulate_words(record: Record) -> tuple[list[Table], str]:
    """The words (or characters) with the highest and the lowest mean loss, and what they were taken from."""
    events = record.events.of("words")
    if not events:
        return [], ""
    event = events[-1]
    unit = "character" if event.get("unit") == "character" else "word"
    tables = []
    for key, title in (("worst", "Highest loss"), ("best", "Lowest loss")):
        rows = []
        for one in list_objects(event, key):
            loss, count = number(one, "loss"), number(one, "count")
            if loss is not None and count is not None:
                rows.append([str(one.get("text")) or "\u2423", show_number(loss), f"{count:,.0f}"])
        if rows:
            tables.append(Table(title, [unit, "nats a target", "hidden"], rows))
    least, total, targets = (number(event, name) for name in ("least_count", "num_units", "num_targets"))
    if least is None or total is None or targets is None:
        return tables, ""
    often = f"those hidden {least:,.0f} times or more" if least > 1 else "all of them"
    told = f"{total:,.0f} different {unit}s at {targets:,.0f} hidden places of the evaluation"
    return tables, f"{told}; ranked are {often}."
