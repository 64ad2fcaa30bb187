"""How far a run is: plain data that a checkpoint carries and every decision of the loop reads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from launch.recipe_stopping import Condition


@dataclass(frozen=True)
class Patience:
    """How a stopping condition stands.

    Attributes:
        best: the value that improvements are measured from; None: there was none yet.
        num_stale: evaluations since the last improvement.
    """

    best: float | None = None
    num_stale: int = 0

    def judged(self, condition: Condition, value: float | None) -> "Patience":
        """After an evaluation; None and NaN are no improvement."""
        if value is not None and condition.improves(value, self.best):
            return Patience(value, 0)
        return Patience(self.best, self.num_stale + 1)


@dataclass(frozen=True)
class Progress:
    """How far a run is, and all that a later decision needs; plain data.

    Attributes:
        step: optimizer steps done.
        best_step, best_value: the best evaluation so far, by the figure that the recipe chooses the best by.
        patience: how each stopping condition stands, by its metric.
        missing: figures that a decision needs and an evaluation did not give, or as NaN; it was said.
        resumed_from: the step of the checkpoint that this process started from.
        num_skipped: of the steps done, those that changed nothing: the loss or the gradient was not finite.
        num_skipped_in_a_row: of them the last ones, without overflows that lowered fp16's loss scale.
        is_evaluation_due: the evaluation at this step was cut short by a signal.
        num_steps_left_out: steps whose rows were left out; step s takes those of data step s plus it.
        num_rewinds, rewound_to: how often the run went back before a spike of the loss, and where to last.
        losses: of the last steps without a spike, oldest first, where the recipe looks for spikes.
        num_spikes_in_a_row: spikes since the last of them.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    patience: Mapping[str, Patience] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    resumed_from: int | None = None
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0
    is_evaluation_due: bool = False
    num_steps_left_out: int = 0
    num_rewinds: int = 0
    rewound_to: int | None = None
    losses: tuple[float, ...] = ()
    num_spikes_in_a_row: int = 0

    @classmethod
    def read(cls, state: Mapping[str, Any], best_metric: str) -> "Progress":
        """That of a checkpoint, which the run goes on from; `asdict` writes it.

        Args:
            state: plain data; keys of others are left aside.
            best_metric: what an older checkpoint, which had one condition, had it on.
        """
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in state.items() if key in known}
        kept = state.get("patience", {})
        if "num_stale" in state:
            kept = {best_metric: {"best": state.get("best_reported"), "num_stale": state["num_stale"]}}
        values["patience"] = {metric: Patience(**value) for metric, value in kept.items()}
        for name in ("missing", "losses"):
            values[name] = tuple(state.get(name, ()))
        return cls(**{**values, "resumed_from": state["step"]})

    @property
    def data_step(self) -> int:
        """The data step that the next step takes its rows from, from 0."""
        return self.step + self.num_steps_left_out

    def after(self, step: int, *, is_skipped: bool = False, is_overflow: bool = False) -> "Progress":
        """The same after a step, with what became of it."""
        return replace(
            self,
            step=step,
            num_skipped=self.num_skipped + is_skipped,
            num_skipped_in_a_row=self.num_skipped_in_a_row + (not is_overflow) if is_skipped else 0,
        )

    def with_evaluation_due(self) -> "Progress":
        """The same, with its evaluation still to be done: a signal came in the middle of it."""
        return replace(self, is_evaluation_due=True)

    def judged(
        self, values: Mapping[str, float | None], best: Condition, conditions: Sequence[Condition]
    ) -> "Progress":
        """After an evaluation: the best so far, and whose patience wears thin.

        Args:
            values: figures by name, those of all conditions; the same on every rank.
            best: what the best model is chosen by.
            conditions: what ends the run.
        """
        value = values.get(best.metric)
        is_best = value is not None and best.improves(value, self.best_value)
        return replace(
            self,
            best_step=self.step if is_best else self.best_step,
            best_value=value if is_best else self.best_value,
            patience={
                one.metric: self.patience.get(one.metric, Patience()).judged(one, values.get(one.metric))
                for one in conditions
            },
            is_evaluation_due=False,
        )

    def noting_missing(self, values: Mapping[str, float | None]) -> "Progress":
        """The same, with the figures that are not there or NaN among those noted."""
        found = [name for name, value in values.items() if value is None or math.isnan(value)]
        return replace(self, missing=(*self.missing, *(name for name in found if name not in self.missing)))

    def find_stale(self, conditions: Sequence[Condition]) -> Condition | None:
        """The first condition whose patience is used up; None: the run goes on."""
        for condition in conditions:
            state = self.patience.get(condition.metric, Patience())
            if condition.patience is not None and state.num_stale >= condition.patience:
                return condition
        return None
