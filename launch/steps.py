"""The length of a run: steps, epochs, tokens, warmup, evaluations and saves of a recipe on its corpus."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from launch.recipe import Recipe
from launch.schedule import Cadence, resolve_first_phase, resolve_warmup

SIZE_WANTED = "wants the size of the corpus"
"""In an error that is none any more once the data are prepared."""


@dataclass(frozen=True)
class Corpus:
    """How much there is to train on, and how that is known.

    Attributes:
        num_rows: training rows; None: unknown.
        num_tokens: pieces or characters in them; None: unknown.
        origin: `prepared` (counted), `declared` (by the recipe), `estimated` (from file sizes) or `unknown`.
        problem: what is missing, in words.
    """

    num_rows: int | None
    num_tokens: int | None
    origin: Literal["prepared", "declared", "estimated", "unknown"]
    problem: str | None = None

    @property
    def tokens_per_row(self) -> float | None:
        """Mean length of a row; None: unknown."""
        return self.num_tokens / self.num_rows if self.num_tokens and self.num_rows else None


def count_steps(recipe: Recipe, corpus: Corpus, errors: list[str]) -> dict[str, Any]:
    """Steps, epochs, tokens, warmup, evaluations and saves; None where they cannot be known."""
    training = recipe.training
    names = ("num_steps", "num_epochs", "num_warmup_steps", "num_evaluations", "num_saves", "num_tokens")
    numbers: dict[str, Any] = dict.fromkeys(names)
    limits = [training.max_steps] if training.max_steps else []
    if training.epochs is not None and corpus.num_rows:
        limits.append(max(1, math.ceil(training.epochs * corpus.num_rows / training.global_batch - 1e-9)))
    if not limits:
        prepare = "" if recipe.data.streaming else "Prepare the data (maskwright data prepare), or "
        remedy = f"{prepare}declare data.expected_rows or data.expected_tokens, or set training.max_steps"
        errors.append(
            f"the number of steps is unknown: training.epochs {SIZE_WANTED}. {remedy[0].upper()}{remedy[1:]}"
        )
        return numbers
    num_steps = numbers["num_steps"] = min(limits)
    numbers["num_warmup_steps"] = resolve_warmup(training.warmup_steps, num_steps)
    if corpus.num_rows:
        num_rows_seen = num_steps * training.global_batch
        numbers["num_epochs"] = num_rows_seen / corpus.num_rows
        if corpus.num_tokens:
            numbers["num_tokens"] = round(num_rows_seen * corpus.num_tokens / corpus.num_rows)
    _check_warmup(recipe, num_steps, numbers["num_warmup_steps"], errors)
    extension = recipe.tokenizer.extend if recipe.tokenizer else None
    if extension is not None and extension.first_phase is not None:
        num_first, problem = resolve_first_phase(
            extension.first_phase.steps, num_steps, numbers["num_warmup_steps"]
        )
        numbers["num_first_phase_steps"] = num_first
        errors += [problem] if problem else []
    for section, what in (("evaluation", "evaluation"), ("checkpoint", "save")):
        every = getattr(recipe, section).every
        if every == "epoch" and not corpus.num_rows:
            errors.append(f"{section}.every: epoch {SIZE_WANTED}; set a number of steps instead")
            continue
        cadence = Cadence(every, training.global_batch, corpus.num_rows)
        numbers[f"num_{what}s"] = cadence.count(num_steps)
        if cadence.count(num_steps - 1) == 0:
            errors.append(
                f"{section}.every {every}: no {what} before the end, at step {num_steps:,}; set "
                f"{section}.every to {max(1, num_steps // 5):,} or less (five in the run)"
            )
    has_rows = recipe.data.evaluation_share > 0 or any(s.split == "evaluation" for s in recipe.data.sources)
    if not has_rows:
        errors.append(
            "nothing to evaluate on: data.evaluation_share is 0 and no source has split: evaluation"
        )
    return numbers


def _check_warmup(recipe: Recipe, num_steps: int, num_warmup_steps: int, errors: list[str]) -> None:
    if num_warmup_steps < num_steps or num_warmup_steps == 0:
        return
    training = recipe.training
    reached = training.learning_rate * num_steps / num_warmup_steps
    errors.append(
        f"training.warmup_steps {num_warmup_steps:,} is longer than the run of {num_steps:,} steps: the rate "
        f"would end at {reached:.2g} and never reach {training.learning_rate:.2g}; set warmup_steps to 0.06 "
        f"({resolve_warmup(0.06, num_steps):,} steps)"
    )
