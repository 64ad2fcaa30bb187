"""The view of a run: what is known of it from its events and marks, and when the next things are due."""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.events import Event, number
from launch.recipe_stopping import Condition, find_best_rule
from launch.schedule import Cadence
from launch.strict_yaml import load_yaml
from launch.watching.flags import Limits

STEP, EVALUATION, SAVE = "step", "evaluation", "save"
_MAX_LOSSES = 512
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Facts:
    """What a run was asked for, as far as a view needs it; None: not known.

    Attributes:
        evaluations, saves: when they are due.
        best: what the best model is chosen by.
        place: profile and ranks, in words.
        limits: what memory and gradients are held against.
    """

    name: str
    num_steps: int = 0
    global_batch: int | None = None
    evaluations: Cadence | None = None
    saves: Cadence | None = None
    best: Condition = field(default_factory=lambda: Condition("loss", "lower"))
    place: str = ""
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(cls, plan: Mapping[str, Any], recipe: Mapping[str, Any], name: str = "") -> "Facts":
        """From a plan and a recipe as plain data; what is not there is not known."""
        plan, recipe = dict(plan), dict(recipe)
        num_steps, batch = number(plan, "num_steps"), number(plan, "global_batch")
        rows = number(plan, "num_rows")

        def find(section: str) -> Cadence | None:
            part = recipe.get(section)
            every = part.get("every") if isinstance(part, dict) else None
            is_count = isinstance(every, int) and not isinstance(every, bool) and every > 0
            if batch is None or not (is_count or (every == "epoch" and rows)):
                return None
            return Cadence(every, int(batch), None if rows is None else int(rows))  # pyright: ignore[reportArgumentType]

        ranks = number(plan, "world_size")
        places = [str(plan["profile"])] if plan.get("profile") else []
        places += [f"{ranks:,.0f} ranks"] if ranks and ranks > 1 else []
        return cls(
            name=str(recipe.get("name") or plan.get("recipe") or name),
            num_steps=int(num_steps or 0),
            global_batch=None if batch is None else int(batch),
            evaluations=find("evaluation"),
            saves=find("checkpoint"),
            best=find_best_rule(recipe),
            place=", ".join(places),
            limits=Limits.of(plan, recipe),
        )


def read_facts(folder: Path) -> Facts:
    """From the files of a run folder, as far as they are there and can be read."""
    plan: Any = {}
    recipe: Any = {}
    with suppress(OSError, ValueError):
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    with suppress(OSError, ValueError):
        recipe = load_yaml((folder / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    is_plan, is_recipe = isinstance(plan, dict), isinstance(recipe, dict)
    return Facts.of(plan if is_plan else {}, recipe if is_recipe else {}, folder.name)


@dataclass(frozen=True)
class Phase:
    """What the loop does now: a step, an evaluation, a save; of `num_all` parts so many are done."""

    name: str
    step: int = 0
    num_done: int = 0
    num_all: int = 0

    def __str__(self) -> str:
        if self.name == EVALUATION:
            return f"evaluating {self.num_done:,}/{self.num_all:,}" if self.num_all else "evaluating"
        return {STEP: "training", SAVE: "saving"}.get(self.name, self.name)


class View:
    """Follows a run, event by event. Times are by its own clock, or from what the events say.

    Attributes:
        train: the last training event; empty before the first.
        evaluation: the last one.
        best: value and step of the best evaluation so far.
        losses: of the whole run, each the mean of an equal number of logged steps.
        flags: that are on, by name.
        phase: what the loop does now.
    """

    def __init__(self, facts: Facts, first_step: int = 0, clock: Callable[[], float] = time.monotonic):
        self.facts, self.step = facts, first_step
        self.train: Event = {}
        self.evaluation: Event = {}
        self.best: tuple[float, int] | None = None
        self.losses: list[float] = []
        self.flags: dict[str, Event] = {}
        self.phase = Phase("starting", first_step)
        self._clock, self._began = clock, clock()
        self._open: list[float] = []
        self._stride = 1
        self._step_seconds: float | None = None
        self._seconds: dict[str, float] = {}

    def observe(self, event: Event) -> None:
        """Take an event into account."""
        kind = event["kind"]
        if kind == "train":
            self._observe_step(event)
        elif kind == "eval":
            self.evaluation, self.step = event, max(self.step, event["step"])
            rule = self.facts.best
            value = number(event, rule.metric)
            if value is not None and rule.improves(value, self.best and self.best[0]):
                self.best = (value, event["step"])
        elif kind == "flag":
            if event.get("is_on"):
                self.flags[str(event.get("name"))] = event
            else:
                self.flags.pop(str(event.get("name")), None)
        elif kind == "end":
            self.phase = Phase("finished", event["step"])

    def mark(self, phase: Phase) -> None:
        """Take note of what the loop does now; how long the last thing took is remembered."""
        if phase.name != self.phase.name:
            now = self._clock()
            if self.phase.name in (EVALUATION, SAVE):
                self._seconds[self.phase.name] = now - self._began
            self._began = now
        self.phase = phase

    def find_seconds_left(self) -> float | None:
        """To the end of the run; evaluations and saves are counted where one has been timed."""
        seconds = self._find_seconds(self.facts.num_steps)
        if seconds is None or self.step >= self.facts.num_steps:
            return seconds
        return seconds + sum(self._seconds.values())  # those of the last step

    def find_next(self, cadence: Cadence | None) -> tuple[int, float | None] | None:
        """The step at which something is due next, and the seconds to it; None: it is not known, or over."""
        if cadence is None or self.step >= self.facts.num_steps:
            return None
        step = min(cadence.next_after(self.step), self.facts.num_steps)
        return step, self._find_seconds(step)

    def _observe_step(self, event: Event) -> None:
        self.train, self.step = event, event["step"]
        loss = number(event, "loss")
        if loss is not None and math.isfinite(loss):
            self._open.append(loss)
            if len(self._open) == self._stride:
                self.losses.append(sum(self._open) / self._stride)
                self._open = []
            if len(self.losses) == _MAX_LOSSES:
                pairs = zip(self.losses[::2], self.losses[1::2], strict=True)
                self.losses = [(a + b) / 2 for a, b in pairs]
                self._stride *= 2
        rows = number(event, "rows_per_second")
        if rows and self.facts.global_batch:
            seconds = self.facts.global_batch / rows
            before = self._step_seconds
            self._step_seconds = seconds if before is None else before + _SMOOTHING * (seconds - before)

    def _find_seconds(self, step: int) -> float | None:
        """From now to the end of a step, without what is due at that step itself."""
        if self._step_seconds is None:
            return None
        seconds = (step - self.step) * self._step_seconds
        for cadence, name in ((self.facts.evaluations, EVALUATION), (self.facts.saves, SAVE)):
            if cadence is not None and step > self.step:
                num_due = cadence.count(step - 1) - cadence.count(self.step)
                seconds += max(num_due, 0) * self._seconds.get(name, 0.0)
        return seconds
