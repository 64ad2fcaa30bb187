"""How a recipe trains, and how its run is saved."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.recipe_evaluation import Every
from launch.recipe_part import Part


class Spikes(Part):
    """A jump of the training loss: seen in one step's loss, all ranks and rows of it."""

    window: int = Field(default=128, ge=8, le=10_000)
    """Earlier steps that a loss is held against; spikes are not among them. Half of them must be there."""
    sigmas: float = Field(default=6.0, gt=0)
    """How far above their median a spike is, in deviations: 1.4826 times the median distance from the median,
    and no less than a thousandth of the median."""
    rewind: bool = True
    """Go back to the newest checkpoint before the spike and leave out the rows from there to the spike. Else
    it is only logged."""
    max_rewinds: int = Field(default=3, ge=1)
    """One spike more ends the run with exit code 5."""


class Training(Part):
    """How it is trained. The global batch is in rows and does not depend on the hardware."""

    global_batch: int = Field(ge=1)
    """Rows in one optimizer step, over all devices and micro-batches."""
    max_steps: int | None = Field(None, ge=1, le=10**9)
    """With `epochs` too, the run ends at whichever comes first."""
    epochs: float | None = Field(None, gt=0, le=100_000)
    learning_rate: float = Field(ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warmup: to zero at the last step in a line or a half cosine, or not at all."""
    warmup_steps: float = Field(0.06, ge=0)
    """Below 1 a share of the steps, else a whole number of steps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    """Not applied to biases and norms."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm; null: never."""
    seed: int = Field(42, ge=0, lt=2**63)
    rank_timeout_seconds: int = Field(600, ge=1)
    """A rank that is not heard of for so long is lost: it is named and the run ends."""
    max_skipped_in_a_row: int = Field(10, ge=1)
    """A step with a loss or gradient that is not finite is skipped on all ranks; so many one after another
    end the run with exit code 5. Overflows under fp16 count once its loss scale has nowhere to fall."""
    spikes: Spikes | None = None
    """What to do about a jump of the loss; null: nothing."""
    deterministic: bool = False
    """Let torch use only operations that give the same bits each time, and fail where there are none."""

    @model_validator(mode="after")
    def _check_length(self) -> "Training":
        if self.max_steps is None and self.epochs is None:
            raise ValueError("max_steps or epochs is wanted (with both: whichever comes first)")
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps is a share below 1 or a whole number, not {self.warmup_steps}")
        return self


class Checkpoint(Part):
    """When the run is saved. The last step always is."""

    every: Every
    """Steps, or `epoch`."""
    keep: int = Field(3, ge=2)
    """The newest ones; the best one and the one that the run was resumed from come on top."""
    in_background: bool = True
    """Save while training goes on, from a copy in host memory; under DeepSpeed saves are made at once."""
    on_failure: Literal["go_on", "stop"] = "go_on"
    """What a failed save does to the run; the last save, at a stop or at the end, must succeed."""
    max_failures: int = Field(3, ge=1)
    """So many failed saves in a row end a run that goes on after one."""
