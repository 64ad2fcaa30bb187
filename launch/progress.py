"""How far a run is: plain data that a checkpoint carries and every decision of the loop reads."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launch.record import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from launch.evaluate import Score


@dataclass(frozen=True)
class Progress:
    """How far a run is, and all that a later decision needs; plain data.

    Attributes:
        step: optimizer steps done.
        best_step, best_value: the best evaluation so far, by the stopping metric (else the loss).
        num_stale: evaluations since the last improvement.
        best_reported: the value that improvements are measured from.
        resumed_from: the step of the checkpoint that this process started from.
        num_skipped: of the steps done, those that changed nothing: a gradient overflowed under fp16.
        is_evaluation_due: the evaluation at this step was cut short by a signal.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    num_stale: int = 0
    best_reported: float | None = None
    resumed_from: int | None = None
    num_skipped: int = 0
    is_evaluation_due: bool = False

    def at(self, step: int) -> "Progress":
        """The same, some steps later."""
        return replace(self, step=step)

    def counting(self, *, is_skipped: bool) -> "Progress":
        """The same, with what became of its last step."""
        return replace(self, num_skipped=self.num_skipped + is_skipped)

    def with_evaluation_due(self) -> "Progress":
        """The same, with its evaluation still to be done: a signal came in the middle of it."""
        return replace(self, is_evaluation_due=True)

    def judged(self, score: "Score", metric: str, threshold: float) -> "Progress":
        """After an evaluation: the best so far, and whether patience wears thin."""
        value = getattr(score, metric)
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        is_best = self.best_value is None or sign * value < sign * self.best_value
        improves = self.best_reported is None or sign * value < sign * self.best_reported - threshold
        return replace(
            self,
            best_step=self.step if is_best else self.best_step,
            best_value=value if is_best else self.best_value,
            num_stale=0 if improves else self.num_stale + 1,
            best_reported=value if improves else self.best_reported,
            is_evaluation_due=False,
        )
