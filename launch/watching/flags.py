"""Red flags: what looks wrong in the course of a run, told from its logged events alone.

A flag begins when its sign has held for long, and ends when it is clearly gone; between the two nothing is
said again. `warn` gives both as events of the kind `flag`: `name`, `is_on`, and a `message` in words.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from launch.events import Event, number

BLOCK_EVENTS = 50
"""Logged steps, at least, whose mean loss is one value: the noise of a single step is left out."""
BLOCK_SHARE = 0.025
"""The same as a share of the planned steps."""
FLAT_BLOCKS = 4
"""So many blocks without a new lowest mean, and no lower than as many before: the loss is not falling."""
WORSE_EVALUATIONS = 3
WINDOW_EVENTS = 50
"""Logged steps, at least, over which waiting, clipping and skipping are judged."""
WINDOW_STEPS = 100
WAIT_ON, WAIT_OFF = 0.2, 0.1
CLIP_ON, CLIP_OFF = 0.9, 0.5
SKIP_ON, SKIP_OFF = 0.1, 0.05
MEMORY_SHARE = 0.95
"""Of the limit: beyond it the next longer row may be one too many."""
PLAN_SHARE = 1.1
"""Of the predicted memory; the plan is then no guide to what still fits."""


@dataclass(frozen=True)
class Limits:
    """What a run is held against; None: not known.

    Attributes:
        num_steps: that are planned.
        max_grad_norm: gradients are scaled down to it.
        predicted_bytes: memory of one device, from the plan.
        limit_bytes: what one device has.
        process_bytes: without a card: memory of one rank's process, from the plan. It is shown, and raises no
            flag: much of it is what Python and its libraries are assumed to take.
    """

    num_steps: int | None = None
    max_grad_norm: float | None = None
    predicted_bytes: float | None = None
    limit_bytes: float | None = None
    process_bytes: float | None = None

    @classmethod
    def of(cls, plan: dict[str, Any], recipe: dict[str, Any]) -> "Limits":
        """From a plan and a recipe as plain data, as far as they are there."""
        memory = plan.get("memory")
        memory = memory if isinstance(memory, dict) else {}
        training = recipe.get("training")
        num_steps = number(plan, "num_steps")
        limit = number(memory, "limit_bytes")
        predicted = None if limit is None else number(memory, "gpu_bytes")
        process = number(memory, "cpu_bytes") if limit is None else None
        norm = number(training, "max_grad_norm") if isinstance(training, dict) else None
        return cls(None if num_steps is None else int(num_steps), norm, predicted, limit, process)


@dataclass
class _Sign:
    """Whether one thing looks wrong now; begins and ends at different values, so that it does not flicker."""

    name: str
    is_on: bool = False

    def turn(self, begins: bool, ends: bool, told: str, over: str) -> Event | None:
        """The event, if it begins or ends now."""
        if self.is_on and ends:
            self.is_on = False
            return {"name": self.name, "is_on": False, "message": over}
        if not self.is_on and begins:
            self.is_on = True
            return {"name": self.name, "is_on": True, "message": told}
        return None


@dataclass
class _Loss:
    """Not falling: the last blocks brought no new lowest mean."""

    block_events: float
    sign: _Sign = field(default_factory=lambda: _Sign("loss_not_falling"))
    _block: list[float] = field(default_factory=list)
    _lowest: float = math.inf
    _since: int = 0
    _num_flat: int = 0
    _means: deque[float] = field(default_factory=lambda: deque(maxlen=2 * FLAT_BLOCKS))
    _last_step: int = 0

    def observe(self, event: Event) -> Iterator[Event | None]:
        loss = number(event, "loss")
        if loss is None or not math.isfinite(loss):
            return
        self._block.append(loss)
        gap, self._last_step = event["step"] - self._last_step, event["step"]
        if len(self._block) < max(BLOCK_EVENTS, self.block_events / max(gap, 1)):
            return
        mean, self._block = statistics.fmean(self._block), []
        is_lower = mean < self._lowest
        self._num_flat = 0 if is_lower else self._num_flat + 1
        if is_lower:
            self._lowest, self._since = mean, event["step"]
        self._means.append(mean)
        before, after = list(self._means)[:FLAT_BLOCKS], list(self._means)[FLAT_BLOCKS:]
        is_flat = len(after) == FLAT_BLOCKS and sum(after) >= sum(before)
        yield self.sign.turn(
            self._num_flat >= FLAT_BLOCKS and is_flat,
            is_lower,
            f"the loss is not falling: {mean:.4f}, and {self._lowest:.4f} at step {self._since:,} already",
            f"the loss falls again: {mean:.4f}",
        )


@dataclass
class _Evaluations:
    """Diverging: worse several times over while the training loss falls, or at once no number any more."""

    sign: _Sign = field(default_factory=lambda: _Sign("evaluation_diverging"))
    _between: list[float] = field(default_factory=list)
    _points: deque[tuple[float, float | None]] = field(
        default_factory=lambda: deque(maxlen=WORSE_EVALUATIONS + 1)
    )
    """Evaluation loss, and the mean training loss on the way to it."""
    _is_lost: bool = False
    """The last evaluation was no number; it is told also where the flag was raised already."""

    def observe(self, event: Event) -> Iterator[Event | None]:
        loss = number(event, "loss")
        is_finite = loss is not None and math.isfinite(loss)
        if event["kind"] == "eval" and "loss" in event:
            yield self._judge_number(event, is_finite)
        if loss is None or not is_finite:
            return
        if event["kind"] == "train":
            self._between.append(loss)
            return
        trained = statistics.fmean(self._between) if self._between else None
        self._between = []
        self._points.append((loss, trained))
        losses = [point[0] for point in self._points]
        is_worse = len(losses) > WORSE_EVALUATIONS and all(b > a for a, b in pairwise(losses))
        ways = [point[1] for point in self._points][1:]
        first, last = (ways[0], ways[-1]) if ways else (None, None)
        falls = first is not None and last is not None and last < first
        told = (
            f"evaluation got worse {WORSE_EVALUATIONS} times running ({losses[0]:.4f} to {loss:.4f}) while "
            f"the training loss fell ({first:.4f} to {last:.4f}): the model learns its rows by heart"
            if falls
            else ""
        )
        yield self.sign.turn(
            is_worse and falls,
            len(losses) > 1 and losses[-1] < losses[-2],
            told,
            f"evaluation got better: {loss:.4f}",
        )

    def _judge_number(self, event: Event, is_finite: bool) -> Event | None:
        was_lost, self._is_lost = self._is_lost, not is_finite
        if is_finite:
            over = f"evaluation is a number again: loss {event['loss']:.4f}"
            return self.sign.turn(False, was_lost, "", over)
        self.sign.is_on = self.sign.is_on and was_lost
        self._points.clear()
        told = f"the evaluation of step {event['step']:,} is not a number: the model has diverged"
        return self.sign.turn(True, False, told, "")


@dataclass
class _Window:
    """The last logged steps: enough of them, over enough steps."""

    rows: deque[Event] = field(default_factory=deque)

    def add(self, event: Event) -> bool:
        """Whether it is long enough to be judged."""
        self.rows.append(event)
        while len(self.rows) > WINDOW_EVENTS + 1 and self._reach(1) >= WINDOW_STEPS:
            self.rows.popleft()
        return len(self.rows) > WINDOW_EVENTS and self._reach(0) >= WINDOW_STEPS

    @property
    def num_steps(self) -> int:
        return self._reach(0)

    def _reach(self, index: int) -> int:
        return self.rows[-1]["step"] - self.rows[index]["step"]

    def values(self, key: str) -> list[float]:
        found = (number(event, key) for event in self.rows)
        return [value for value in found if value is not None]


class Flags:
    """Follows the events of a run in their order."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._loss = _Loss(BLOCK_SHARE * (limits.num_steps or 0))
        self._evaluations = _Evaluations()
        self._window = _Window()
        self._wait = _Sign("data_starving")
        self._clip = _Sign("gradient_above_clip")
        self._skip = _Sign("steps_skipped")
        self._memory = _Sign("memory_near_limit")
        self._plan = _Sign("memory_above_plan")

    def warn(self, event: Event) -> list[Event]:
        """The flags that begin or end with an event: what is to be logged, without kind and step."""
        if event["kind"] == "eval":
            found = self._evaluations.observe(event)
        elif event["kind"] == "train":
            found = self._observe_step(event)
        else:
            return []
        return [flag for flag in found if flag is not None]

    def _observe_step(self, event: Event) -> Iterator[Event | None]:
        yield from self._loss.observe(event)
        yield from self._evaluations.observe(event)
        yield from self._judge_memory(event)
        if self._window.add(event):
            yield self._judge_wait()
            yield self._judge_skips()
            yield self._judge_clip()

    def _judge_wait(self) -> Event | None:
        shares = self._window.values("data_wait_fraction")
        share = statistics.fmean(shares) if shares else 0.0
        return self._wait.turn(
            share > WAIT_ON,
            share < WAIT_OFF,
            f"data starving: {share:.0%} of the time of the last {self._window.num_steps:,} steps went into "
            "waiting for data",
            f"data is no longer starving: {share:.0%} of the time goes into waiting now",
        )

    def _judge_clip(self) -> Event | None:
        clip, norms = self._limits.max_grad_norm, self._window.values("grad_norm")
        if clip is None or not norms:
            return None
        share = sum(norm > clip for norm in norms) / len(norms)
        return self._clip.turn(
            share >= CLIP_ON,
            share < CLIP_OFF,
            f"the gradient norm is above the clip of {clip:g} in {share:.0%} of the last {len(norms)} logged "
            f"steps (median {statistics.median(norms):.2f}): nearly every step is scaled down",
            f"the gradient norm is no longer above the clip nearly always: in {share:.0%} of the steps now",
        )

    def _judge_skips(self) -> Event | None:
        counts = self._window.values("skipped_steps")
        if len(counts) < 2:
            return None
        num_skipped = counts[-1] - counts[0]
        share = num_skipped / self._window.num_steps
        return self._skip.turn(
            share > SKIP_ON,
            share < SKIP_OFF,
            f"{num_skipped:,.0f} of the last {self._window.num_steps:,} steps were skipped",
            f"few steps are skipped now: {num_skipped:,.0f} of the last {self._window.num_steps:,}",
        )

    def _judge_memory(self, event: Event) -> Iterator[Event | None]:
        peak, limits = number(event, "peak_memory_bytes"), self._limits
        if peak is None:
            return
        gib = peak / 2**30
        if limits.limit_bytes:
            share = peak / limits.limit_bytes
            told = f"memory is near the limit: {gib:.2f} GiB at most, {share:.0%} of what the device can give"
            over = "memory is no longer near the limit"
            yield self._memory.turn(share > MEMORY_SHARE, share <= MEMORY_SHARE, told, over)
        if limits.predicted_bytes:
            share = peak / limits.predicted_bytes
            told = f"memory is above the plan: {gib:.2f} GiB at most, {share:.0%} of what was predicted"
            over = "memory is no longer above the plan"
            yield self._plan.turn(share > PLAN_SHARE, share <= PLAN_SHARE, told, over)
