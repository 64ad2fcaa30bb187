"""Plan against reality: what was predicted or derived beside what was measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from launch.events import number
from launch.figure import show_bytes, show_fact, show_number, show_ratio, show_seconds, show_share
from launch.record import Record
from launch.reporting.table import Cell, Table


@dataclass(frozen=True)
class Measured:
    """What the training events add up to.

    Attributes:
        num_steps: whose time is known.
        seconds: of these steps, evaluations and saves left out.
        num_tokens: in them.
        step_seconds: of the median step.
        tokens_per_second: the same.
    """

    num_steps: int
    seconds: float
    num_tokens: float
    step_seconds: float
    tokens_per_second: float


def measure(record: Record) -> Measured | None:
    """Read speeds; None where none was logged. An event stands for the steps since the one before it."""
    global_batch = number(record.plan, "global_batch")
    if global_batch is None:
        training = record.recipe.get("training")
        global_batch = number(training, "global_batch") if isinstance(training, dict) else None
    spans: list[tuple[int, float, float]] = []
    before = 0
    for event in record.events.of("train"):
        num_steps, before = event["step"] - before, event["step"]
        rows, tokens = (number(event, f"{name}_per_second") for name in ("rows", "tokens"))
        if rows and tokens is not None and global_batch and rows > 0:
            spans.append((num_steps, global_batch / rows, tokens))
    if not spans:
        return None
    seconds = sum(steps * each for steps, each, _ in spans)
    middle = len(spans) // 2
    return Measured(
        num_steps=sum(steps for steps, *_ in spans),
        seconds=seconds,
        num_tokens=sum(steps * each * tokens for steps, each, tokens in spans),
        step_seconds=sorted(each for _, each, _ in spans)[middle],
        tokens_per_second=sorted(tokens for *_, tokens in spans)[middle],
    )


def measure_run(record: Record) -> float | None:
    """Seconds of the whole run with evaluations and saves: from the first to the last event of each start.

    What a start did after the checkpoint that the next one went on from is not in it: its events are gone.
    None where no start has two events with their times.
    """
    starts: list[list[float]] = [[]]
    for event in record.events.rows:
        if event["kind"] in ("start", "resume"):
            starts.append([])
        time = number(event, "time")
        if time is not None and math.isfinite(time):
            starts[-1].append(time)
    spans = [max(times) - min(times) for times in starts if len(times) > 1]
    return sum(spans) if spans else None


def tabulate_reality(record: Record) -> Table | None:
    """The plan's figures with where they come from, and what was measured."""
    rows = [*_list_counts(record), *_list_times(record), *_list_memory(record)]
    rows = [row for row in rows if any(row[1:3])]
    if not rows:
        return None
    cells = [
        [name, Cell(planned, origin), Cell(found, how), ratio]
        for name, planned, found, ratio, origin, how in rows
    ]
    return Table("", ["", "planned", "measured", "measured / planned"], cells, _NOTE, is_compact=True)


_NOTE = (
    "Derived: follows from the recipe and the data by arithmetic. Predicted: by a model of the hardware. "
    "Measured: from the events of this run; times of steps are without evaluations and saves, that of the "
    "run is the sum over its starts."
)
_Row = tuple[str, str, str, str, str, str]


def _list_counts(record: Record) -> list[_Row]:
    plan, events = record.plan, record.events
    found = measure(record)
    weights, masks = events.of("weights")[-1:], events.of("masks")[-1:]
    train = events.of("train")[-1:]
    evaluations = len([event for event in events.of("eval") if event["step"] > 0])
    rows = [
        _compare("steps", number(plan, "num_steps"), float(events.last_step), "derived"),
        _compare("tokens", number(plan, "num_tokens"), found.num_tokens if found else None, "derived"),
        _compare(
            "epochs", number(plan, "num_epochs"), number(train[0], "epoch") if train else None, "derived"
        ),
        _compare("evaluations after step 0", number(plan, "num_evaluations"), float(evaluations), "derived"),
        _compare(
            "parameters",
            number(plan, "num_parameters"),
            number(weights[0], "num_parameters") if weights else None,
            "derived",
        ),
    ]
    # The checkpoint of the last step comes on top of those that are due, unless one is due there.
    planned = show_fact(plan["num_saves"]) if plan.get("num_saves") is not None else ""
    saves = f"{len(events.of('save')):,}"
    rows.append(("saves, and one at the end", planned, saves, "", "derived" if planned else "", "measured"))
    if masks:
        asked, realised = (number(masks[0], name) for name in ("asked_rate", "realised_rate"))
        rows.append(_compare("share hidden", asked, realised, "asked", show=lambda rate: f"{rate:.2%}"))
    return rows


def _list_times(record: Record) -> list[_Row]:
    plan, found = record.plan, measure(record)
    times = plan.get("time")
    times = times if isinstance(times, dict) else {}
    origin = "predicted" + (f", {times['origin']}" if isinstance(times.get("origin"), str) else "")
    step, num_steps, tokens = number(times, "step"), number(plan, "num_steps"), number(plan, "num_tokens")
    speed = tokens / (step * num_steps) if step and num_steps and tokens else None
    whole = step * num_steps if step and num_steps else None
    rows = [
        _compare("a step", step, found.step_seconds if found else None, origin, show=_show_time),
        _compare("tokens a second", speed, found.tokens_per_second if found else None, origin),
        _compare("all steps", whole, found.seconds if found else None, origin, show=show_seconds),
        _compare(
            "the run, evaluations and saves with it",
            number(plan, "seconds"),
            measure_run(record),
            origin,
            show=show_seconds,
        ),
    ]
    waits = [value for _, value in record.events.curve("train", "data_wait_fraction")]
    shares = [value for _, value in record.events.curve("train", "mfu")]
    for name, values in (("time spent waiting for data", waits), ("share of the peak FLOP/s", shares)):
        if values:
            mean = sum(values) / len(values)
            rows.append((name, "", show_share(mean), "", "", "measured, mean"))
    return rows


def _list_memory(record: Record) -> list[_Row]:
    memory = record.plan.get("memory")
    memory = memory if isinstance(memory, dict) else {}
    device = str(record.environment.get("device") or "")
    peaks = [value for _, value in record.events.curve("train", "peak_memory_bytes")]
    kind = "gpu" if device.startswith("cuda") or (not device and number(memory, "gpu_bytes")) else "cpu"
    name = "memory of the card" if kind == "gpu" else "CPU memory of the first process"
    row = _compare(
        name, number(memory, f"{kind}_bytes"), max(peaks) if peaks else None, "predicted", show=show_bytes
    )
    return [row]


def _compare(
    name: str,
    planned: float | None,
    found: float | None,
    origin: str,
    *,
    show: Callable[[float], str] | None = None,
) -> _Row:
    planned, found = (
        value if value is not None and math.isfinite(value) else None for value in (planned, found)
    )
    write = show or _show_count
    return (
        name,
        "" if planned is None else write(planned),
        "" if found is None else write(found),
        show_ratio(found / planned) if planned and found is not None else "",
        "" if planned is None else origin,
        "" if found is None else "measured",
    )


def _show_count(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else show_number(value)


def _show_time(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds < 1 else f"{seconds:,.2f} s"
