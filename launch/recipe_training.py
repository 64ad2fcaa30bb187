"""How a recipe trains, and how its run is saved."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.recipe_evaluation import Every
from launch.recipe_part import Part


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
