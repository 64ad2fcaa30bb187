"""The record of a run: what its folder says it was asked to do, did, and came to."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.events import Event, Events, number, read_events
from launch.figure import show_number, show_ratio, show_share
from launch.recipe_stopping import find_best_rule
from launch.redaction import show
from launch.strict_yaml import StrictYamlError, load_yaml
from launch.verdict import DONE, HELD, STOPPED, Verdict, read_verdict

YARDSTICKS = {"unigram": "the unigram table", "neighbours": "the neighbour table"}
_DONE = ("steps", "patience", "done", "finished")


@dataclass(frozen=True)
class Record:
    """A run folder, read. Files that are missing or broken are empty here and named in `gaps`."""

    folder: Path
    events: Events
    plan: dict[str, Any]
    recipe: dict[str, Any]
    recipe_text: str
    command: str
    environment: dict[str, Any]
    gaps: list[str] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        """The recipe's name, else the folder's."""
        return str(self.recipe.get("name") or self.plan.get("recipe") or self.folder.name)

    @property
    def num_steps(self) -> int | None:
        """Steps that were planned."""
        planned = number(self.plan, "num_steps")
        return None if planned is None or not math.isfinite(planned) else int(planned)

    @property
    def end(self) -> Event | None:
        """The end event, unless the run was taken up again after it."""
        marks = self.events.marks
        return marks[-1] if marks and marks[-1]["kind"] == "end" else None

    @property
    def is_finished(self) -> bool:
        """The run ended by itself, at its last step or by its stopping rule."""
        if self.end is None:
            return False
        reached = self.num_steps is not None and self.events.last_step >= self.num_steps
        return reached or str(self.end.get("reason", "done")) in _DONE

    def evaluation(self, step: int | None = None) -> Event | None:
        """The evaluation at a step; None: the last one."""
        events = [e for e in self.events.of("eval") if step is None or e["step"] == step]
        return events[-1] if events else None

    def yardsticks(self) -> list[tuple[str, float]]:
        """(name, perplexity), the weakest first."""
        named = {str(e.get("name")): number(e, "perplexity") for e in self.events.of("yardstick")}
        known = [(name, value) for name, value in named.items() if value is not None and 0 < value < math.inf]
        return sorted(known, key=lambda item: -item[1])

    @property
    def targets(self) -> tuple | None:
        """What tells sets of evaluation targets apart: their number, the yardsticks. None: no evaluation."""
        last = self.evaluation()
        return None if last is None else (number(last, "num_targets"), *self.yardsticks())

    @property
    def failure(self) -> str:
        """Why the last start in the folder failed, in words; empty where it did not, or did not say."""
        if self.verdict is None or self.verdict.exit_code in (DONE, HELD, STOPPED):
            return ""
        return f"failed, exit {self.verdict.exit_code}: {self.verdict.message}"


def are_same_targets(sets: Iterable[tuple | None]) -> bool:
    """Whether all that were evaluated were judged on the same targets (see `Record.targets`)."""
    return len(set(sets) - {None}) <= 1


def read_record(folder: Path) -> Record:
    """Read a run folder, whole or not.

    Raises:
        ValueError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a run folder, runs/<recipe name> by default")
    gaps: list[str] = []
    recipe_text = _read_text(folder / "recipe.resolved.yaml", gaps)
    recipe: Any = {}
    try:
        recipe = load_yaml(recipe_text) if recipe_text else {}
    except StrictYamlError as error:
        gaps.append(f"recipe.resolved.yaml cannot be read: {str(error).splitlines()[0]}")
    record = Record(
        folder=folder,
        events=read_events(folder / "metrics.jsonl"),
        plan=_read_json(folder / "plan.json", gaps),
        recipe=recipe if isinstance(recipe, dict) else {},
        recipe_text=recipe_text,
        command=_read_text(folder / "command.txt", gaps).strip(),
        environment=_read_json(folder / "environment.json", gaps),
        gaps=gaps,
        verdict=_read_verdict(folder, gaps),
    )
    gaps.extend(_find_gaps(record))
    return record


def _read_text(path: Path, gaps: list[str]) -> str:
    if not path.is_file():
        gaps.append(f"{path.name} is not there")
        return ""
    return path.read_bytes().decode("utf-8", errors="replace")


def _read_json(path: Path, gaps: list[str]) -> dict[str, Any]:
    text = _read_text(path, gaps)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        gaps.append(f"{path.name} cannot be read: {error}")
        return {}
    return value if isinstance(value, dict) else {}


def _read_verdict(folder: Path, gaps: list[str]) -> Verdict | None:
    try:
        verdict = read_verdict(folder)
        if verdict is None or type(verdict.exit_code) is int:
            return verdict and Verdict(verdict.exit_code, " ".join(verdict.message.split()))
        gaps.append(f"verdict.json cannot be read: its exit code is {show(repr(verdict.exit_code))}")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        gaps.append(f"verdict.json cannot be read: {show(str(error))}")
    return None


def _find_gaps(record: Record) -> list[str]:
    events, gaps = record.events, [record.failure] if record.failure else []
    if not events.rows:
        there = (record.folder / "metrics.jsonl").exists()
        nothing = f"metrics.jsonl {'has no event in it' if there else 'is not there'}: nothing was measured"
        return [*gaps, nothing]
    if events.is_cut:
        gaps.append(
            "the last line of metrics.jsonl ends in the middle: the run was killed, or is writing now"
        )
    if events.num_unreadable:
        gaps.append(f"{events.num_unreadable:,} lines of metrics.jsonl are not events and were left out")
    if not events.of("train"):
        gaps.append("no training step was logged")
    if not events.of("eval"):
        gaps.append("no evaluation was logged")
    elif record.evaluation(0) is None:
        gaps.append("step 0 was not evaluated: how far training moved the model is not known")
    if not events.of("yardstick"):
        gaps.append("no yardsticks were logged")
    if not events.of("fill"):
        gaps.append("no samples were filled (evaluation.samples in the recipe)")
    if record.end is None and not record.failure:
        gaps.append(f"no end was logged: the run {_tell_missing_end(record)}")
    return gaps


def _tell_missing_end(record: Record) -> str:
    if record.verdict is not None and record.verdict.exit_code == STOPPED:
        return f"was stopped ({record.verdict.message})"
    return "is still going or was killed"


def describe_status(record: Record) -> str:
    """Where the run is, in words: finished, step n of N, why it ended or failed."""
    step, planned = record.events.last_step, record.num_steps
    where = f"step {step:,}" + (f" of {planned:,}" if planned is not None else "")
    if record.end is None:
        if record.failure:
            return f"{record.failure}; {where if record.events.rows else 'nothing logged'}"
        return f"not finished, {where}" if record.events.rows else "nothing logged"
    reason = str(record.end.get("reason") or "")
    told = {"patience": "stopped early, no better evaluation within the patience"}.get(reason, reason)
    words = "" if not told or (reason in _DONE and told == reason) else f" ({told.replace('_', ' ')})"
    return f"{'finished' if record.is_finished else 'ended early'}, {where}{words}"


def find_best(record: Record) -> tuple[str, int | None]:
    """The metric that the best model is chosen by, and the step that it is from."""
    best = find_best_rule(record.recipe)
    sign = -1 if best.direction == "higher" else 1
    curve = record.events.curve("eval", best.metric)
    finite = [(sign * value, step) for step, value in curve if value == value]
    return best.metric, min(finite)[1] if finite else None


def judge_discriminator(record: Record, step: int | None = None) -> str:
    """The verdict on a discriminator in words: its loss against the base rate's; else empty."""
    event = record.evaluation(step) or {}
    names = ("discriminator_loss", "discriminator_base_loss", "discriminator_auc")
    loss, base, auc = (number(event, name) for name in names)
    if loss is None or base is None or auc is None:
        return ""
    verb = "is below" if loss < base else "is not below"
    return (
        f"The discriminator's log-loss {loss:.4f} {verb} the {base:.4f} of the share of replaced pieces "
        f"alone; it puts a replaced piece before an original one {show_share(auc)} of the time (AUC; chance "
        "is 50%)."
    )


def judge(record: Record, step: int | None = None) -> str:
    """The verdict in words: perplexity against the yardsticks and against step 0.

    Args:
        record: the run.
        step: of the evaluation that is judged; None: the last one.
    """
    event = record.evaluation(step)
    perplexity = None if event is None else number(event, "perplexity")
    is_lost = event is not None and "perplexity" in event and event["perplexity"] is None
    if event is not None and (is_lost or (perplexity is not None and not math.isfinite(perplexity))):
        return f"The evaluation at step {event['step']:,} is not a finite number: training diverged."
    if event is None or perplexity is None or perplexity <= 0:  # none is below 1
        return "There is no evaluation yet, so nothing can be said about the model."
    start = _perplexity_at(record, 0) if event["step"] > 0 else None
    parts = [_compare(perplexity, record.yardsticks()) + _tell_start(perplexity, start) + "."]
    if event["step"] == 0:
        parts.append("This is the model before training.")
    elif step is None and not record.is_finished:
        parts.append(f"This is the state at step {event['step']:,}.")
    parts += _tell_best(record, perplexity) if step is None else []
    sizes = {number(e, "num_targets") for e in [event, *record.events.of("yardstick")]} - {None}
    if len(sizes) > 1:
        parts.append(
            "The yardsticks were measured on another number of targets: they are no fair comparison."
        )
    return " ".join(parts)


def _perplexity_at(record: Record, step: int) -> float | None:
    event = record.evaluation(step)
    value = None if event is None else number(event, "perplexity")
    return value if value is not None and math.isfinite(value) else None


def _compare(perplexity: float, yardsticks: list[tuple[str, float]]) -> str:
    told = [(YARDSTICKS.get(name, name), value, value / perplexity) for name, value in yardsticks]
    beaten = [
        f"{show_ratio(ratio)} below {name} ({show_number(value)})" for name, value, ratio in told if ratio > 1
    ]
    missed = [f"{name} ({show_number(value)})" for name, value, ratio in told if ratio <= 1]
    figure = show_number(perplexity)
    if not told:
        return f"Perplexity {figure}, with no yardstick to hold it against"
    if not missed:
        return f"Perplexity {figure}, {' and '.join(beaten)}"
    verb = "does not beat" if len(missed) == 1 else "beats neither"
    text = f"Perplexity {figure} {verb} {' nor '.join(missed)}"
    return f"{text}; it is {' and '.join(beaten)}" if beaten else text


def _tell_start(perplexity: float, start: float | None) -> str:
    if start is None:
        return ""
    if perplexity >= start:
        return f"; at step 0 it was {show_number(start)}, so training has not improved it"
    return f"; at step 0 it was {show_number(start)}"


def _tell_best(record: Record, perplexity: float) -> list[str]:
    finite = [(v, s) for s, v in record.events.curve("eval", "perplexity") if math.isfinite(v)]
    best, step = min(finite)
    return (
        [f"The best evaluation was {show_number(best)}, at step {step:,}."]
        if best < 0.995 * perplexity
        else []
    )
