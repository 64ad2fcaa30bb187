"""The view of a run: what is known of it from its events and marks, and when the next things are due."""

import json
import math
import time
from collections import deque
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
_MAX_EVALUATIONS = 64
"""That are kept; a run that goes back further has none until the next."""


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


@dataclass
class Best:
    """Follows which evaluation is the best by a rule; going back forgets those of the course that is left.

    An evaluation forgets those of its step and later ones too: it stands where they stood.
    """

    rule: Condition
    _points: list[tuple[float, int]] = field(default_factory=list)
    """Each better than those before it."""

    def observe(self, event: Event) -> None:
        """Take an evaluation or a rewind into account; other events say nothing about it."""
        kind, step = event["kind"], event["step"]
        if kind not in ("eval", "rewind"):
            return
        last = step if kind == "rewind" else step - 1
        self._points = [point for point in self._points if point[1] <= last]
        value = number(event, self.rule.metric) if kind == "eval" else None
        if value is not None and self.rule.improves(value, self.now and self.now[0]):
            self._points.append((value, step))

    @property
    def now(self) -> tuple[float, int] | None:
        """Value and step; None: there is none."""
        return self._points[-1] if self._points else None


class View:
    """Follows a run, event by event. Times are by its own clock, or from what the events say.

    Attributes:
        train: the last training event; empty before the first.
        evaluation: the last one that the run has not gone back before.
        best: value and step of the best of them.
        losses: of the whole run, each the mean of an equal number of logged steps.
        flags: that are on, by name.
        phase: what the loop does now.
    """

    def __init__(self, facts: Facts, first_step: int = 0, clock: Callable[[], float] = time.monotonic):
        self.facts, self.step = facts, first_step
        self.train: Event = {}
        self.losses: list[float] = []
        self.flags: dict[str, Event] = {}
        self.phase = Phase("starting", first_step)
        self._best = Best(facts.best)
        self._evaluations: deque[Event] = deque(maxlen=_MAX_EVALUATIONS)
        self._clock, self._began = clock, clock()
        self._counted: tuple[float, int] = (self._began, 0)
        self._first_done = 0
        self._open: list[float] = []
        self._stride = 1
        self._step_seconds: float | None = None
        self._seconds: dict[str, float] = {}

    def observe(self, event: Event) -> None:
        """Take an event into account."""
        kind = event["kind"]
        self._best.observe(event)
        if kind == "train":
            self._observe_step(event)
        elif kind == "eval":
            self._evaluations.append(event)
            self.step = max(self.step, event["step"])
        elif kind == "rewind":
            self.step = event["step"]
            while self._evaluations and self._evaluations[-1]["step"] > self.step:
                self._evaluations.pop()
        elif kind == "flag":
            if event.get("is_on"):
                self.flags[str(event.get("name"))] = event
            else:
                self.flags.pop(str(event.get("name")), None)
        elif kind == "end":
            self.phase = Phase("finished", event["step"])

    def mark(self, phase: Phase) -> None:
        """Take note of what the loop does now; how long the last thing took is remembered."""
        now = self._clock()
        if phase.name != self.phase.name:
            if self.phase.name in (EVALUATION, SAVE):
                self._seconds[self.phase.name] = now - self._began
            self._began, self._first_done = now, phase.num_done
            self._counted = (now, phase.num_done)
        if phase.num_done != self._counted[1]:
            self._counted = (now, phase.num_done)
        self.phase = phase

    def find_phase_seconds_left(self) -> float | None:
        """To the end of an evaluation or save that is on its way; None: there is none, or it is not known.

        By the parts that are done and by what the last one took, whichever is longer: metrics beside the
        score come after all parts.
        """
        phase = self.phase
        if phase.name not in (EVALUATION, SAVE):
            return None
        expected = [self._seconds[phase.name]] if phase.name in self._seconds else []
        at, num_done = self._counted
        if phase.num_all > num_done > self._first_done:
            pace = (at - self._began) / (num_done - self._first_done)
            expected.append(at - self._began + pace * (phase.num_all - num_done))
        return max(0.0, max(expected) - (self._clock() - self._began)) if expected else None

    @property
    def evaluation(self) -> Event:
        """The last evaluation; empty before the first."""
        return self._evaluations[-1] if self._evaluations else {}

    @property
    def best(self) -> tuple[float, int] | None:
        """Value and step."""
        return self._best.now

    @property
    def step_seconds(self) -> float | None:
        """The smoothed time of a step, evaluations and saves left out."""
        return self._step_seconds

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
