"""When things happen in a run, as pure functions of the step. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RateSchedule:
    """The learning rate of each step.

    Attributes:
        peak: the rate at the end of the warmup.
        num_steps: steps in the run.
        num_warmup_steps: the first of them, in which the rate rises in a line.
        shape: how it falls from then on.
        num_first_phase_steps: steps before the warmup, at a rate of their own.
        first_phase_rate: that rate.
    """

    peak: float
    num_steps: int
    num_warmup_steps: int
    shape: Literal["linear", "cosine", "constant"]
    num_first_phase_steps: int = 0
    first_phase_rate: float = 0.0

    def at(self, step: int) -> float:
        """The rate of the update that makes `step` (from 1); it is never zero unless the peak is."""
        if step <= self.num_first_phase_steps:
            return self.first_phase_rate
        step -= self.num_first_phase_steps
        num_steps = self.num_steps - self.num_first_phase_steps
        if step <= self.num_warmup_steps:
            return self.peak * step / self.num_warmup_steps
        left = (num_steps - step + 1) / (num_steps - self.num_warmup_steps)
        if self.shape == "linear":
            return self.peak * left
        if self.shape == "cosine":
            return self.peak * 0.5 * (1 - math.cos(math.pi * left))
        return self.peak


@dataclass(frozen=True)
class Cadence:
    """A thing that recurs: every so many steps, or at the end of each pass over the rows."""

    every: int | Literal["epoch"]
    global_batch: int
    num_rows: int | None

    def is_due(self, step: int) -> bool:
        """Whether it happens after `step` steps."""
        if step == 0:
            return False
        if self.every != "epoch":
            return step % self.every == 0
        return self._passes(step) > self._passes(step - 1)

    def count(self, num_steps: int) -> int:
        """How often it happens in the first `num_steps` steps."""
        if self.every != "epoch":
            return num_steps // self.every
        # A step may hold several passes; it is still one step at whose end it happens.
        return min(num_steps, self._passes(num_steps))

    def next_after(self, step: int) -> int:
        """The first step after `step` at which it happens."""
        if self.every != "epoch":
            return (step // self.every + 1) * self.every
        wanted = self._passes(step) + 1
        return -(-wanted * (self.num_rows or 1) // self.global_batch)

    def _passes(self, step: int) -> int:
        if not self.num_rows:
            raise ValueError("`every: epoch` wants the number of rows")
        return step * self.global_batch // self.num_rows


def resolve_warmup(warmup_steps: float, num_steps: int) -> int:
    """Warmup in steps; a value below 1 is a share of the run, rounded up."""
    return math.ceil(warmup_steps * num_steps - 1e-9) if warmup_steps < 1 else int(warmup_steps)


def resolve_first_phase(steps: float, num_steps: int, num_warmup_steps: int) -> tuple[int, str | None]:
    """The first phase in steps, and why it cannot be, if so; the warmup comes after it.

    Args:
        steps: a value below 1 is a share of the run, rounded up.
        num_steps: in the run.
        num_warmup_steps: of them.
    """
    num_first = resolve_warmup(steps, num_steps)
    left = num_steps - num_warmup_steps
    if num_first < left:
        return num_first, None
    given = f"{num_first:,} steps in which only new rows are trained"
    warmup = f" and a warmup of {num_warmup_steps:,}" if num_warmup_steps else ""
    return num_first, (
        f"tokenizer.extend.first_phase.steps: {given}{warmup} leave none of the {num_steps:,} steps of the "
        f"run; set it to 0.1 ({resolve_warmup(0.1, num_steps):,} steps)"
    )
