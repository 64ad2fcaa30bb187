"""When and by what a run is judged, and when that ends it."""

from typing import Annotated, Literal

from pydantic import Field

from launch.recipe_metrics import MetricsChoice
from launch.recipe_part import Part, Rate

Every = Annotated[int, Field(ge=1)] | Literal["epoch"]


class Evaluation(Part):
    """When the model is judged, on masks that never change. Step 0 and the last step always are."""

    every: Every
    """Steps, or `epoch`."""
    rate: Rate | None = None
    """Mask rate of the evaluation rows; null: the training rate."""
    metrics: MetricsChoice = ["loss", "perplexity", "accuracy"]
    """A list: nothing more is measured than these three, which are always logged. A mapping: what is measured
    beside them, and logged as `eval/<corpus>/<metric>`."""
    samples: list[str] = []
    """Texts with `[MASK]` (words) or `_` (characters) that are filled before and after training."""


Metric = Literal["loss", "perplexity", "accuracy", "discriminator_loss", "discriminator_auc"]


class Stopping(Part):
    """Stop early when an evaluation metric no longer gets better."""

    metric: Metric | None = None
    """Null: `loss`, for replaced-token detection `discriminator_loss`."""
    patience: int = Field(5, ge=1)
    """Evaluations without an improvement before the run stops."""
    threshold: float = Field(0.0, ge=0)
    """An improvement smaller than this (absolute) does not count."""
