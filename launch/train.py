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
    make_folder,
)
from launch.world import World, check_gpu, has_cuda_driver

if TYPE_CHECKING:
    from launch.build import Job
    from launch.progress import Progress
    from launch.step import Outcome
    from launch.track import Stopwatch, Tracker


def train(job: "Job", progress: "Progress", tracker: "Tracker", folder: Path) -> "Progress":
    """Run a job from where it is to its last step, or until it stops getting better."""
    from launch.checkpoint import save_checkpoint
    from launch.step import begin_step, take_step
    from launch.track import Stopwatch

    recipe, plan = job.recipe, job.plan
    rates = plan.rate_schedule(recipe)
    evaluations, saves = plan.cadence(recipe.evaluation.every), plan.cadence(recipe.checkpoint.every)
    last_step = plan.num_steps or 0
    if progress.step == 0 or progress.is_evaluation_due:
        progress = evaluate_and_keep_best(job, progress, tracker, folder)
    if progress.is_evaluation_due:
        raise stopped(job, progress)
    if is_stale(job, progress):
        return progress
    watch = Stopwatch()
    for batch in job.steps(progress.step, last_step):
        watch.waited()
        progress = progress.at(progress.step + 1)
        rate = rates.at(progress.step)
        begin_step(job, tracker, progress.step, rate)
        outcome = take_step(job, batch)
        progress = progress.counting(is_skipped=outcome.is_skipped)
        fault.at("after_step")
        watch.worked(outcome.num_pieces, outcome.num_rows, outcome.num_flops)
        if progress.step % recipe.logging.every == 0 or progress.step == last_step:
            log_step(job, tracker, progress, rate, outcome, watch)
        if evaluations.is_due(progress.step) or progress.step == last_step:
            progress = evaluate_and_keep_best(job, progress, tracker, folder)
        is_stopped = outcome.is_asked_to_stop or progress.is_evaluation_due
        is_over = (progress.step == last_step or is_stale(job, progress)) and not progress.is_evaluation_due
        if saves.is_due(progress.step) or is_over or is_stopped:
            job.stop.mark("save", progress.step)
            tracker.log("save", progress.step, path=str(save_checkpoint(job, progress, folder)))
        if is_over:
            break
        if is_stopped:
            raise stopped(job, progress)
        watch.go_on()
    return progress


def stopped(job: "Job", progress: "Progress") -> RunError:
    """All ranks were asked to stop, and what there is to go on from is saved."""
    start = (
        f"goes on from step {progress.step:,}" if progress.step else "starts anew: nothing was trained yet"
    )
    return RunError(STOPPED, f"stopped {job.stop.reason}; the same command {start}")


def evaluate_and_keep_best(job: "Job", progress: "Progress", tracker: "Tracker", folder: Path) -> "Progress":
    """Evaluate on the frozen masks; keep the model if it is the best so far.

    When a signal cuts it short, it is due again at the next start.
    """
    from launch.checkpoint import save_model
    from launch.evaluate import evaluate
    from launch.stop import StopAsked

    def tick() -> None:
        job.stop.mark("evaluation", progress.step)
        job.stop.check(job.accelerator.device)

    job.stop.mark("evaluation", progress.step)
    try:
        score = evaluate(job.bare_model, job.frozen, job.accelerator.device, job.stop, job.suite)
        further = job.suite.measure(job.bare_model, tick) if job.suite else {}
    except StopAsked:
        return progress.with_evaluation_due()
    progress = progress.judged(score, job.recipe.best_metric, job.recipe.threshold)
    tracker.log("eval", progress.step, **score.as_dict(), **further)
    if progress.step and progress.best_step == progress.step:
        save_model(job, folder / "best")
    return progress


def is_stale(job: "Job", progress: "Progress") -> bool:
    """Whether the patience of the recipe is used up; the same on every rank."""
    return job.recipe.stopping is not None and progress.num_stale >= job.recipe.stopping.patience


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
    from launch.display import open_display
    from launch.floors import require_versions

    require_versions()
    store = prepare_corpus(request.recipe, may_grow=True)
    plan = request.plan(request.default_memory())
    if plan.errors:
        raise RunError(REQUEST, "\n  - ".join(["the plan cannot work:", *plan.errors]))
    world.check(plan)
    check_gpu(plan, request.profile)

    from transformers.utils.logging import disable_progress_bar

    from launch.build import build_job
    from launch.checkpoint import save_model
    from launch.folder import is_finished, write_run_files
    from launch.opening import describe_start, fill_samples
    from launch.progress import Progress
    from launch.resume import check_state, choose_checkpoint, load_checkpoint, set_aside_newer
    from launch.track import Tracker

    folder = request.output
    start = choose_checkpoint(folder, request.resume)
    if start and request.resume == "auto" and is_finished(folder, plan.num_steps or 0):
        check_state(request.recipe, store, start, request.accepted)
        has_report = (folder / "report.html").exists()
        return close_run(folder, world.rank == 0 and not has_report, f"the run in {folder} is done already")
    disable_progress_bar()  # a bar for each saved file would tear the display
    job = build_job(request.recipe, plan, request.profile, store)
    job.stop.pulse = pulse
    progress = load_checkpoint(job, start, folder, request.accepted) if start else Progress()
    is_main = job.accelerator.is_main_process
    if is_main:
        write_run_files(folder, job)
        set_aside_newer(folder, progress.step)
    job.accelerator.wait_for_everyone()
    display = open_display(request.recipe.name, plan.num_steps or 0, progress.step) if is_main else None
    with (
        job.stop,
        Tracker(
            folder,
            is_main=is_main,
            display=display,
            report_to=request.recipe.report_to,
            resumed_step=progress.step if start else None,
        ) as tracker,
    ):
        describe_start(job, tracker, progress)
        progress = train(job, progress, tracker, folder)
        fill_samples(job, tracker, progress.step)
        save_model(job, folder / "final")
        message = log_end(job, tracker, progress)
    return close_run(folder, is_main, message)


def log_end(job: "Job", tracker: "Tracker", progress: "Progress") -> str:
    """Log that the run is over; how far it went, in words."""
    from launch.display import describe_skipped

    is_early = progress.step < (job.plan.num_steps or 0)
    reason = "patience" if is_early else "steps"
    tracker.log("end", progress.step, reason=reason, skipped_steps=progress.num_skipped)
    early = " (stopped early: no better evaluation within the patience)" if is_early else ""
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
        verdict = pulse.explain(error) if pulse else None
        if verdict is None:
            sys.stderr.write(show(traceback.format_exc()))
            verdict = Verdict(DEFECT, f"{type(error).__name__}: {error}")
    if pulse is not None:
        pulse.leave(verdict)
    if UNDER_RUN not in os.environ and (verdict.exit_code or os.environ.get("RANK", "0") == "0"):
        print(verdict.message, file=sys.stderr if verdict.exit_code else sys.stdout)
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
