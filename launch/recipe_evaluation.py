"""When and by what a run is judged, and when that ends it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from launch.recipe_metrics import MetricsChoice
from launch.recipe_part import Part, Rate

Every = Annotated[int, Field(ge=1)] | Literal["epoch"]


class Evaluation(Part):
    """When the model is judged, on masks that never change. Step 0 and the last step always are."""

    every: Every
    """Steps, or `epoch`."""
    rate: Rate | None = None
    """Mask rate of the evaluation rows; null: the training rate."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Of all that is drawn for evaluations: masks, spans, occurrences of terms, examples of probes. Runs that
    differ in `training.seed` are judged on the same targets."""
    metrics: MetricsChoice = ["loss", "perplexity", "accuracy"]
    """A list: nothing more is measured than these three, which are always logged. A mapping: what is measured
    beside them, and logged as `eval/<corpus>/<metric>`."""
    best: str | None = None
    """The figure that the best model is chosen by; null: that of the first stopping condition, else `loss`,
    for replaced-token detection `discriminator_loss`."""
    samples: list[str] = []
    """Texts with `[MASK]` (words) or `_` (characters) that are filled before and after training."""


class Stopping(Part):
    """Stop early when a figure of the evaluation no longer gets better."""

    metric: str | None = None
    """`loss`, `perplexity`, `accuracy`, of replaced-token detection `discriminator_loss` or
    `discriminator_auc`, or any `eval/<corpus>/<figure>` that `evaluation.metrics` measures. Null: `loss`, for
    replaced-token detection `discriminator_loss`."""
    patience: int = Field(5, ge=1)
    """Evaluations without an improvement before the run stops."""
    threshold: float = Field(0.0, ge=0)
    """An improvement smaller than this does not count."""
    relative: bool = False
    """The threshold is a share of the best value so far; else it is absolute."""
    direction: Literal["auto", "lower", "higher"] = "auto"
    """Which values are better. `auto`: lower of losses and perplexities, higher of accuracies and such."""


def _check_metrics(conditions: list[Stopping]) -> list[Stopping]:
    names = [condition.metric for condition in conditions]
    if len(names) != len(set(names)):
        raise ValueError(f"two conditions have one metric: {names}")
    return conditions


def _find_form(value: object) -> str:
    return "list" if isinstance(value, list) else "one"


Conditions = Annotated[list[Stopping], Field(min_length=1), AfterValidator(_check_metrics)]
StoppingChoice = Annotated[
    Annotated[Stopping, Tag("one")] | Annotated[Conditions, Tag("list")], Discriminator(_find_form)
]
"""One condition or several, of which any ends the run."""
