"""The trainer: `python -m launch.train RECIPE`, under accelerate launch, torchrun or alone.

The loop is `train`; all that it needs is built in launch/build.py.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipes.documents import SourceError
from launch import fault
from launch.hardware import ProfileError
from launch.liveness import RANK_TIMEOUT
from launch.pulse import Pulse, join_run
from launch.recipe_check import RecipeError
from launch.redaction import show
from launch.request import Request, add_arguments, parse
from launch.verdict import (
    DEFECT,
    DONE,
    REQUEST,
    STOPPED,
    UNDER_RUN,
    RunError,
    Verdict,
    find_disk_failure,
    make_folder,
)
from launch.world import World, check_gpu, has_cuda_driver

if TYPE_CHECKING:
    from launch.build import Job
    from launch.checkpoints.saving import Saver
    from launch.course import Course
    from launch.progress import Progress
    from launch.step import Outcome
    from launch.watching.track import Stopwatch, Tracker


def train(
    job: "Job", progress: "Progress", tracker: "Tracker", saver: "Saver", course: "Course"
) -> "Progress":
    """Run a job from where it is to its last step, or until it stops getting better."""
    from launch.step import begin_step, take_step
    from launch.watching.track import Stopwatch

    recipe, plan = job.recipe, job.plan
    rates = plan.rate_schedule(recipe)
    evaluations, saves = plan.cadence(recipe.evaluation.every), plan.cadence(recipe.checkpoint.every)
    progress = catch_up(job, progress, tracker, saver)
    watch, owes_save = Stopwatch(), False
    while not is_over(job, progress):
        batch = course.take(progress)
        watch.waited()
        step = progress.step + 1
        rate = rates.at(step)
        begin_step(job, tracker, step, rate)
        outcome = take_step(job, batch)
        fault.at("after_step")
        watch.worked(outcome.num_pieces, outcome.num_rows, outcome.num_flops, outcome.num_slots)
        progress = progress.after(step, is_skipped=outcome.is_skipped, is_overflow=outcome.is_overflow)
        if step % recipe.logging.every == 0 or step == plan.num_steps:
            log_step(job, tracker, progress, rate, outcome, watch)
        progress = course.follow(progress, outcome)
        if progress.step < step:
            progress = catch_up(job, progress, tracker, saver)
        elif evaluations.is_due(step) or step == plan.num_steps:
            progress = evaluate_and_keep_best(job, progress, tracker, saver)
        is_stopped = outcome.is_asked_to_stop or progress.is_evaluation_due
        saver.look()
        owes_save = (owes_save or saves.is_due(step)) and progress.step == step
        if is_stopped or is_over(job, progress):
            saver.save_last(progress)
        elif owes_save and not progress.num_skipped_in_a_row:
            saver.save(progress)  # else good checkpoints would make room for what numbers have gone wrong in
            owes_save = False
        if is_stopped and not is_over(job, progress):
            raise stopped(job, progress)
        watch.go_on()
    return progress


def is_over(job: "Job", progress: "Progress") -> bool:
    """Whether it was the last step, or a condition has used up its patience; the same on every rank."""
    is_last = progress.step >= (job.plan.num_steps or 0)
    is_stale = progress.find_stale(job.recipe.conditions) is not None
    return (is_last or is_stale) and not progress.is_evaluation_due


def catch_up(job: "Job", progress: "Progress", tracker: "Tracker", saver: "Saver") -> "Progress":
    """Make the evaluation that a start owes: of step 0, or one that was cut short.

    Raises:
        RunError: all ranks are asked to stop.
    """
    if progress.step == 0 or progress.is_evaluation_due:
        progress = evaluate_and_keep_best(job, progress, tracker, saver)
    if progress.is_evaluation_due:
        raise stopped(job, progress)
    return progress


def stopped(job: "Job", progress: "Progress") -> RunError:
    """All ranks were asked to stop, and what there is to go on from is saved."""
    start = (
        f"goes on from step {progress.step:,}" if progress.step else "starts anew: nothing was trained yet"
    )
    return RunError(STOPPED, f"stopped {job.stop.reason}; the same command {start}")


def evaluate_and_keep_best(
    job: "Job", progress: "Progress", tracker: "Tracker", saver: "Saver"
) -> "Progress":
    """Evaluate on the frozen masks; keep the model if it is the best so far.

    When a signal cuts it short, it is due again at the next start.
    """
    from launch.evaluate import evaluate
    from launch.stop import StopAsked
    from launch.stopping import judge_figures

    def tick() -> None:
        job.stop.mark("evaluation", progress.step)
        job.stop.check(job.accelerator.device)

    job.stop.mark("evaluation", progress.step)
    try:
        score = evaluate(job.bare_model, job.frozen, job.accelerator.device, job.stop, job.suite)
        further = job.suite.measure(job.bare_model, tick) if job.suite else {}
    except StopAsked:
        return progress.with_evaluation_due()
    figures = {**score.as_dict(), **further}
    tracker.log("eval", progress.step, **figures)
    progress = judge_figures(job, tracker, progress, figures)
    if progress.step and progress.best_step == progress.step:
        saver.keep_best(progress)
    return progress


def log_step(
    job: "Job", tracker: "Tracker", progress: "Progress", rate: float, outcome: "Outcome", watch: "Stopwatch"
) -> None:
    """One line of metrics.jsonl for a step; speeds are over the steps since the last line."""
    import torch

    is_cuda = job.accelerator.device.type == "cuda"
    peak_flops = None if job.plan.peak_flops is None else job.plan.peak_flops * job.plan.world_size
    tracker.log(
        "train",
        progress.step,
        **outcome.means,
        num_targets=outcome.num_targets,
        learning_rate=rate,
        grad_norm=outcome.grad_norm,
        **watch.read(peak_flops),
        peak_memory_bytes=torch.cuda.max_memory_allocated() if is_cuda else _resident_bytes(),
        epoch=outcome.epoch,
        skipped_steps=progress.num_skipped,
    )


def _resident_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(request: Request, world: World, pulse: Pulse) -> Verdict:
    """Prepare the data, plan from the world that was found, train, and leave a whole run folder."""
    from launch.corpus import prepare_corpus
    from launch.doctor.ops import require_no_left_lock
    from launch.floors import require_versions
    from launch.watching.trackers import require_packages

    require_versions()
    require_no_left_lock(request.profile)
    require_packages(request.recipe.report_to)
    store = prepare_corpus(request.recipe, may_grow=True)
    plan = request.plan(request.default_memory())
    if plan.errors:
        raise RunError(REQUEST, "\n  - ".join(["the plan cannot work:", *plan.errors]))
    world.check(plan)
    check_gpu(plan, request.profile)

    from transformers.utils.logging import disable_progress_bar

    from launch.build import build_job
    from launch.checkpoints.choice import find_start, take_up
    from launch.checkpoints.saving import Saver
    from launch.course import Course
    from launch.examples import log_examples
    from launch.opening import describe_start, fill_samples
    from launch.watching.track import open_tracker

    folder = request.output
    start, is_done = find_start(request, world, plan, store)
    if is_done:
        has_report = (folder / "report.html").exists()
        return close_run(folder, world.rank == 0 and not has_report, f"the run in {folder} is done already")
    disable_progress_bar()  # a bar for each saved file would tear the display
    job = build_job(request.recipe, plan, request.profile, store)
    job.stop.pulse = pulse
    progress, events = take_up(job, start, request)
    with (
        job.stop,
        open_tracker(folder, job, progress) as tracker,
        Saver(job, tracker, folder) as saver,
        Course(job, tracker, saver, folder, request.accepted) as course,
    ):
        for event in events:
            tracker.log(**event)
        describe_start(job, tracker, progress)
        progress = train(job, progress, tracker, saver, course)
        fill_samples(job, tracker, progress.step)
        saver.keep_final(progress)
        log_examples(job, tracker, progress.step)
        message = log_end(job, tracker, progress)
    return close_run(folder, job.accelerator.is_main_process, message)


def log_end(job: "Job", tracker: "Tracker", progress: "Progress") -> str:
    """Log that the run is over; how far it went, in words."""
    from launch.watching.display import describe_skipped

    spent = progress.find_stale(job.recipe.conditions)
    is_early = progress.step < (job.plan.num_steps or 0)
    values = {"reason": "patience", "metric": spent.metric} if is_early and spent else {"reason": "steps"}
    tracker.log("end", progress.step, **values, skipped_steps=progress.num_skipped)
    early = ""
    if is_early and spent:
        early = f" (stopped early: no better {spent.metric} in {spent.patience:,} evaluations)"
    skipped = f"; {describe_skipped(progress.num_skipped)}" if progress.num_skipped else ""
    return f"{progress.step:,} steps{early}{skipped}"


def close_run(folder: Path, is_main: bool, message: str) -> Verdict:
    """Write the model cards and the report; say how it went in one line."""
    from launch.folder import finish_folder

    if is_main:
        finish_folder(folder)
    return Verdict(DONE, f"{message}; model in {folder / 'final'}, report in {folder / 'report.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit code, which is also left in the run folder for `maskwright run`."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.train",
        description="Train a recipe in this process, or as one rank of those a launcher started.",
        epilog="example: accelerate launch --config_file accelerate_configs/cpu.yaml -m launch.train RECIPE",
    )
    add_arguments(parser)
    arguments = parse(parser, argv)
    pulse = None
    try:
        fault.arm()
        world = World.find()
        world.fill(arguments)
        request = Request.of(arguments, default_profile=world.default_profile(has_cuda_driver()))
        os.environ.setdefault(RANK_TIMEOUT, str(request.recipe.training.rank_timeout_seconds))
        pulse = join_run(make_folder(request.output), world)
        if request.profile.gpu is None:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        verdict = run(request, world, pulse)
    except RunError as error:
        verdict = (pulse and pulse.explain(error)) or error.verdict
    except (RecipeError, ProfileError) as error:
        verdict = Verdict(REQUEST, str(error))
    except SourceError as error:  # of a stream that is read while it is trained on
        verdict = Verdict(REQUEST, f"the data cannot be used: {error}")
    except Exception as error:  # noqa: BLE001 - the last handler: printed whole, and recorded
        verdict = (pulse and pulse.explain(error)) or find_disk_failure(error)
        if verdict is None:
            sys.stderr.write(show(traceback.format_exc()))
            verdict = Verdict(DEFECT, f"{type(error).__name__}: {error}")
    is_told = UNDER_RUN in os.environ
    if pulse is not None:
        try:
            pulse.leave(verdict)
        except OSError as error:
            is_told = False
            sys.stderr.write(f"how this rank ends could not be left in the run folder: {error}\n")
    if not is_told and (verdict.exit_code or os.environ.get("RANK", "0") == "0"):
        print(verdict.message, file=sys.stderr if verdict.exit_code else sys.stdout)
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
