"""Plain facts of a run: what was asked, its data, its plan, where it ran."""

import math
from typing import Any

from launch.events import Event, number
from launch.figure import show_bytes, show_fact, show_number, show_share
from launch.record import YARDSTICKS, Record
from launch.reporting.answers import list_objects
from launch.reporting.reality import measure
from launch.reporting.table import Table

Facts = list[tuple[str, str]]


def list_asked(record: Record) -> Facts:
    """What the recipe wants, in few words."""
    recipe, plan = record.recipe, record.plan
    model, data, training = (_part(recipe, name) for name in ("model", "data", "training"))
    masking, evaluation = _part(_part(recipe, "objective"), "masking"), _part(recipe, "evaluation")
    family = " ".join(str(model[key]) for key in ("family", "source") if key in model)
    sources = [
        " ".join(str(source[key]) for key in ("package", "path", "version") if source.get(key))
        for source in list_objects(data, "sources")
    ]
    rate = number(masking, "rate")
    hidden = str(masking.get("kind", "")).replace("_", " ")
    facts = [
        ("model", family),
        ("data", "; ".join(sources)),
        ("hidden", f"{hidden}, {show_share(rate)}" if hidden and rate is not None else hidden),
        ("a step", _tell(training, "global_batch", "{} rows") + _tell(data, "row_length", " of up to {}")),
        ("steps", show_fact(plan.get("num_steps")) if plan.get("num_steps") is not None else ""),
        ("learning rate", _tell(training, "learning_rate", "{}") + _tell(training, "schedule", ", {}")),
        ("evaluated every", _tell(evaluation, "every", "{} steps").replace("epoch steps", "epoch")),
        ("profile", show_fact(plan["profile"]) if plan.get("profile") else ""),
    ]
    return [(name, text) for name, text in facts if text]


def _tell(part: dict[str, Any], key: str, form: str) -> str:
    return "" if part.get(key) is None else form.format(show_fact(part[key]))


def _part(tree: dict[str, Any], key: str) -> dict[str, Any]:
    below = tree.get(key)
    return below if isinstance(below, dict) else {}


def list_key_figures(record: Record) -> Facts:
    """The few figures that a reader looks for first."""
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
    for name, text in (
        ("auc", "discriminator AUC"),
        ("loss", "its log-loss"),
        ("base_loss", "of base rate"),
    ):
        value = number(last, f"discriminator_{name}") if last else None
        shown += [(text, f"{value:.4f}")] if value is not None else []
    found = measure(record)
    if found:
        shown.append(("tokens/s", show_number(found.tokens_per_second)))
    peaks = [value for _, value in record.events.curve("train", "peak_memory_bytes")]
    if peaks:
        shown.append(("peak memory", show_bytes(max(peaks))))
    return shown


def list_data(record: Record) -> Facts:
    """What the rows were made from, and what was kept."""
    names = {
        "num_documents": "training documents",
        "num_rows": "training rows",
        "num_pieces": "pieces in them",
        "fill": "rows filled to",
        "num_evaluation_documents": "evaluation documents",
        "num_evaluation_rows": "evaluation rows",
    }
    facts: Facts = []
    for event in record.events.of("data")[-1:]:
        for key, name in names.items():
            value = number(event, key)
            if value is not None:
                facts.append((name, show_share(value) if key == "fill" else f"{value:,.0f}"))
    hidden = [value for _, value in record.events.curve("train", "num_targets")]
    if hidden:
        facts.append(("targets a step, mean", show_number(sum(hidden) / len(hidden))))
    return facts


def tabulate_intake(record: Record) -> Table | None:
    """Records read, kept and dropped, each with its reason."""
    events = record.events.of("data")[-1:]
    if not events:
        return None
    event = events[0]
    read = _part(event, "read")
    rows = _list_read(read)
    dropped = {str(name): count for name, count in _part(event, "dropped").items()}
    rows += [(f"dropped: {name}", count) for name, count in dropped.items()]
    kept = [number(event, key) for key in ("num_documents", "num_evaluation_documents")]
    known = [count for count in kept if count is not None and math.isfinite(count)]
    rows += [("kept as documents, training and evaluation together", int(sum(known)))] if known else []
    note = "" if dropped else "No document was dropped by a rule."
    return Table("", ["", "count"], [[name, show_fact(count)] for name, count in rows], note)


def _list_read(read: Event) -> list[tuple[str, Any]]:
    names = {"lines": "records read", "good": "good records", "blank": "blank"}
    rows = [(name, read[key]) for key, name in names.items() if read.get(key) is not None]
    return rows + [(f"skipped: {name}", count) for name, count in _part(read, "skipped").items()]


def list_plan(record: Record) -> Facts:
    """The plan's settings."""
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


def list_environment(record: Record) -> Facts:
    """Where it ran."""
    return [(str(key), show_fact(value)) for key, value in record.environment.items()]
