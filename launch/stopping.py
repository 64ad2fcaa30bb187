"""Stopping: what an evaluation's figures mean for the best model and for the patience of a run."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launch.agreement import share
from launch.recipe_stopping import suggest
from launch.verdict import REQUEST, RunError

if TYPE_CHECKING:
    from launch.build import Job
    from launch.progress import Progress
    from launch.watching.track import Tracker


def judge_figures(
    job: "Job", tracker: "Tracker", progress: "Progress", figures: Mapping[str, float]
) -> "Progress":
    """The progress after an evaluation. All ranks call it, and decide by the figures of rank 0.

    Raises:
        RunError: the evaluation before training lacks a figure that the recipe decides by.
    """
    best, conditions = job.recipe.best, job.recipe.conditions
    wanted = dict.fromkeys([best.metric, *(condition.metric for condition in conditions)])
    values = share({metric: figures.get(metric) for metric in wanted})
    for metric, value in values.items():
        if value is None and progress.step == 0:
            raise RunError(
                REQUEST,
                f"stopping or evaluation.best names {metric}, and this evaluation gives no such figure; "
                f"{suggest(metric, figures)}",
            )
    told, progress = progress.missing, progress.noting_missing(values)
    for metric in progress.missing[len(told) :]:
        value = values[metric]
        what = "is not a number" if value is not None and math.isnan(value) else "is not there"
        text = f"warning: {metric} {what}: it counts as no improvement from here on (said once)"
        tracker.log("missing", progress.step, metric=metric, message=text)
    return progress.judged(values, best, conditions)
