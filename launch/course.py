"""The course of a run: which rows its next step takes, and what losses that jump or are no numbers mean.

All of it is decided from sums over all ranks, so that every rank decides alike.
"""

import math
from collections.abc import Collection, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.agreement import share
from launch.checkpoints.manifest import find_checkpoints, find_damage, find_step
from launch.spikes import Spike, enter_loss, find_spike
from launch.verdict import DIVERGED, RunError

if TYPE_CHECKING:
    from data_pipes.feed import StepBatch
    from launch.build import Job
    from launch.checkpoints.saving import Saver
    from launch.progress import Progress
    from launch.step import Outcome
    from launch.watching.track import Tracker


class Course:
    """Gives the batches of a run, and says after each step where the run is then.

    While it is open batches are prepared ahead, from where the run is.

    Args:
        job: that is run.
        tracker: gets the events `skip`, `spike` and `rewind`.
        saver: of the run's checkpoints.
        folder: of the run.
        accepted: keys whose change was accepted when the run was started.
    """

    def __init__(
        self, job: "Job", tracker: "Tracker", saver: "Saver", folder: Path, accepted: Collection[str] = ()
    ):
        self._job, self._tracker, self._saver = job, tracker, saver
        self._folder, self._accepted = folder, accepted
        self._place = (0, 0)
        self._batches: Generator[StepBatch, None, None] | None = None

    def __enter__(self) -> "Course":
        return self

    def __exit__(self, *_: object) -> None:
        if self._batches is not None:
            self._batches.close()

    def take(self, progress: "Progress") -> "StepBatch":
        """This rank's batch of the step after `progress`."""
        place = (progress.data_step, (self._job.plan.num_steps or 0) + progress.num_steps_left_out)
        if self._batches is None or place != self._place:
            if self._batches is not None:
                self._batches.close()
            self._batches = self._job.steps(*place)
        self._place = (place[0] + 1, place[1])
        return next(self._batches)

    def follow(self, progress: "Progress", outcome: "Outcome") -> "Progress":
        """Where the run is after a step: there, or at an earlier checkpoint from which it goes another way.

        Raises:
            RunError: too many steps were skipped in a row, or the run went back as often as it may.
        """
        if outcome.is_skipped:
            self._check_skipped(progress, outcome)
            return progress
        wanted = self._job.recipe.training.spikes
        if wanted is None:
            return progress
        spike = find_spike(progress.losses, outcome.loss, wanted)
        if spike is None:
            return enter_loss(progress, outcome.loss, False, wanted)
        place = None
        if wanted.rewind:
            self._check_rewinds(progress, spike, wanted.max_rewinds)
            self._saver.settle()
            place = share(find_earlier(self._folder, progress) if self._is_main else None)
        if place is not None:
            return self._rewind(progress, spike, place)
        why = "; there is no whole checkpoint before it to go back to" if wanted.rewind else ""
        self._say("spike", progress.step, progress, spike, f"{why}; the run goes on")
        return enter_loss(progress, outcome.loss, True, wanted)

    @property
    def _is_main(self) -> bool:
        return self._job.accelerator.is_main_process

    def _check_skipped(self, progress: "Progress", outcome: "Outcome") -> None:
        if outcome.is_overflow:  # told in the training event
            return
        number, most = progress.num_skipped_in_a_row, self._job.recipe.training.max_skipped_in_a_row
        what = "gradient" if math.isfinite(outcome.loss) else "loss"
        text = (
            f"warning: step {progress.step:,} is skipped on all ranks, as its {what} is not finite; the "
            f"weights are as before ({number:,} in a row, {most:,} end the run)"
        )
        self._tracker.log("skip", progress.step, reason=what, num_in_a_row=number, message=text)
        if number >= most:
            raise RunError(
                DIVERGED,
                f"training diverged: {number:,} steps in a row had a loss or gradient that is not finite and "
                "were skipped (training.max_skipped_in_a_row); the last checkpoint is untouched. Try a lower "
                "training.learning_rate or a longer warmup",
            )

    def _check_rewinds(self, progress: "Progress", spike: Spike, most: int) -> None:
        if progress.num_rewinds < most:
            return
        self._say("spike", progress.step, progress, spike, f"; the run went back {most:,} times already")
        raise RunError(
            DIVERGED,
            f"training diverged: the loss jumped to {spike.loss:.4g} at step {progress.step:,} after the run "
            f"had gone back {progress.num_rewinds:,} times (training.spikes.max_rewinds); the last "
            "checkpoint is untouched. Try a lower training.learning_rate or a longer warmup",
        )

    def _rewind(self, progress: "Progress", spike: Spike, place: Path) -> "Progress":
        from launch.checkpoints.choice import Start, tidy_folder
        from launch.checkpoints.resume import load_checkpoint

        self._tell("spike", progress.step, progress, spike)
        loaded = load_checkpoint(self._job, place, self._folder, self._accepted)
        for event in tidy_folder(self._folder, Start(place), loaded.step) if self._is_main else []:
            self._tracker.log(**event)
        self._job.accelerator.wait_for_everyone()
        back = replace(
            loaded,
            num_steps_left_out=progress.data_step - loaded.step,
            num_rewinds=progress.num_rewinds + 1,
            rewound_to=loaded.step,
        )
        if progress.best_step is not None and progress.best_step > back.step:
            # RUN/best is of the course that is left; the next evaluation takes its place.
            back = replace(back, best_step=None, best_value=None)
        text = (
            f"; the run goes back to step {back.step:,} and leaves out the rows of data steps "
            f"{loaded.data_step + 1:,} to {progress.data_step:,}"
        )
        self._say(
            "rewind",
            back.step,
            progress,
            spike,
            text,
            first_left_out=loaded.data_step + 1,
            last_left_out=progress.data_step,
            num_steps_left_out=back.num_steps_left_out,
            number=back.num_rewinds,
        )
        return back

    def _say(
        self, kind: str, step: int, progress: "Progress", spike: Spike, what: str, **values: int
    ) -> None:
        text = (
            f"the loss of step {progress.step:,} is {spike.loss:.4g}, {spike.num_sigmas:.1f} deviations "
            f"above the usual {spike.usual:.4g}"
        )
        self._tell(kind, step, progress, spike, **values, message=f"warning: {text}{what}")

    def _tell(self, kind: str, step: int, progress: "Progress", spike: Spike, **values: int | str) -> None:
        figures = {"loss": spike.loss, "usual": spike.usual, "deviation": spike.deviation}
        self._tracker.log(kind, step, spike_step=progress.step, **figures, **values)


def find_earlier(folder: Path, progress: "Progress") -> Path | None:
    """The checkpoint to go back to from a spike at a step: the newest whole one before it.

    Where the run went back to that one last time, the damage may be in it: the one before, if there is one.
    """
    found = [place for place in find_checkpoints(folder) if find_step(place) < progress.step]
    whole = (place for place in found if find_damage(place) is None)
    newest = next(whole, None)
    if newest is not None and find_step(newest) == progress.rewound_to:
        return next(whole, newest)
    return newest
