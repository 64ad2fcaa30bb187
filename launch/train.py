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
from launch.hardware import ProfileError
from launch.recipe_check import RecipeError
from launch.request import Request, add_arguments, parse
from launch.verdict import (
    DEFECT,
    DONE,
    REQUEST,
    STOPPED,
    UNDER_RUN,
    RunError,
    Verdict,
    clear_verdict,
    make_folder,
    write_verdict,
)
from launch.world import World, check_gpu, has_cuda_driver

if TYPE_CHECKING:
    from launch.build import Job
    from launch.checkpoint import Progress
    from launch.step import Outcome
    from launch.track import Stopwatch, Tracker


def train(job: "Job", progress: "Progress", tracker: "Tracker", folder: Path) -> "Progress":
    """Run a job from where it is to its last step, or until it stops getting better."""
    from launch.checkpoint import save_checkpoint
    from launch.optim import set_rate
    from launch.step import take_step
    from launch.track import Stopwatch

    recipe, plan = job.recipe, job.plan
    rates = plan.rate_schedule(recipe)
    evaluations, saves = plan.cadence(recipe.evaluation.every), plan.cadence(recipe.checkpoint.every)
    last_step = plan.num_steps or 0
    if progress.step == 0:
        progress = evaluate_and_keep_best(job, progress, tracker, folder)
    if is_stale(job, progress):
        return progress
    watch = Stopwatch()
    for batch in job.steps(progress.step, last_step):
        watch.waited()
        progress = progress.at(progress.step + 1)
        rate = rates.at(progress.step)
        set_rate(job.optimizer, rate)
        outcome = take_step(job, batch)
        watch.worked(outcome.num_pieces, outcome.num_rows, outcome.num_flops)
        if progress.step % recipe.logging.every == 0 or progress.step == last_step:
            log_step(job, tracker, progress.step, rate, outcome, watch)
        if evaluations.is_due(progress.step) or progress.step == last_step:
            progress = evaluate_and_keep_best(job, progress, tracker, folder)
        is_over = progress.step == last_step or is_stale(job, progress)
        if saves.is_due(progress.step) or is_over or outcome.is_asked_to_stop:
            tracker.log("save", progress.step, path=str(save_checkpoint(job, progress, folder)))
        if is_over:
            break
        if outcome.is_asked_to_stop:
            raise RunError(
                STOPPED, f"stopped by a signal; the same command goes on from step {progress.step:,}"
            )
        watch.go_on()
    return progress


def evaluate_and_keep_best(job: "Job", progress: "Progress", tracker: "Tracker", folder: Path) -> "Progress":
    """Evaluate on the frozen masks; keep the model if it is the best so far."""
    from launch.checkpoint import save_model
    from launch.evaluate import evaluate

    score = evaluate(job.bare_model, job.frozen, job.accelerator.device)
    progress = progress.judged(score, job.recipe.best_metric, job.recipe.threshold)
    tracker.log("eval", progress.step, **score.as_dict())
    if progress.step and progress.best_step == progress.step:
        save_model(job, folder / "best")
    return progress


def is_stale(job: "Job", progress: "Progress") -> bool:
    """Whether the patience of the recipe is used up; the same on every rank."""
    return job.recipe.stopping is not None and progress.num_stale >= job.recipe.stopping.patience


def log_step(
    job: "Job", tracker: "Tracker", step: int, rate: float, outcome: "Outcome", watch: "Stopwatch"
) -> None:
    """One line of metrics.jsonl for a step; speeds are over the steps since the last line."""
    import torch

    is_cuda = job.accelerator.device.type == "cuda"
    peak_flops = None if job.plan.peak_flops is None else job.plan.peak_flops * job.plan.world_size
    tracker.log(
        "train",
        step,
        **outcome.means,
        num_targets=outcome.num_targets,
        learning_rate=rate,
        grad_norm=outcome.grad_norm,
        **watch.read(peak_flops),
        peak_memory_bytes=torch.cuda.max_memory_allocated() if is_cuda else _resident_bytes(),
        epoch=outcome.epoch,
    )


def _resident_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(request: Request, world: World) -> Verdict:
    """Prepare the data, plan from the world that was found, train, and leave a whole run folder."""
    from launch.corpus import prepare_corpus
    from launch.display import open_display

    store = prepare_corpus(request.recipe, may_grow=True)
    plan = request.plan()
    if plan.errors:
        raise RunError(REQUEST, "\n  - ".join(["the plan cannot work:", *plan.errors]))
    world.check(plan)
    check_gpu(plan, request.profile)

    from transformers.utils.logging import disable_progress_bar

    from launch.build import build_job
    from launch.checkpoint import (
        Progress,
        check_keys,
        choose_checkpoint,
        load_checkpoint,
        save_model,
        set_aside_newer,
    )
    from launch.folder import is_finished, write_run_files
    from launch.opening import describe_start, fill_samples
    from launch.track import Tracker

    folder = request.output
    start = choose_checkpoint(folder, request.resume)
    if start and request.resume == "auto" and is_finished(folder):
        check_keys(request.recipe, store, start)
        has_report = (folder / "report.html").exists()
        return close_run(folder, world.rank == 0 and not has_report, f"the run in {folder} is done already")
    disable_progress_bar()  # a bar for each saved file would tear the display
    job = build_job(request.recipe, plan, request.profile, store)
    progress = load_checkpoint(job, start) if start else Progress()
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
        is_early = progress.step < (plan.num_steps or 0)
        tracker.log("end", progress.step, reason="patience" if is_early else "steps")
    early = " (stopped early: no better evaluation within the patience)" if is_early else ""
    return close_run(folder, is_main, f"{progress.step:,} steps{early}")


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
    folder = None
    try:
        world = World.find()
        world.fill(arguments)
        request = Request.of(arguments, default_profile=world.default_profile(has_cuda_driver()))
        folder = make_folder(request.output)
        if UNDER_RUN not in os.environ and world.rank == 0:
            clear_verdict(folder)
        if request.profile.gpu is None:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        verdict = run(request, world)
    except RunError as error:
        verdict = error.verdict
    except (RecipeError, ProfileError) as error:
        verdict = Verdict(REQUEST, str(error))
    except SourceError as error:  # of a stream that is read while it is trained on
        verdict = Verdict(REQUEST, f"the data cannot be used: {error}")
    except Exception as error:  # noqa: BLE001 - the last handler: printed whole, and recorded
        traceback.print_exc()
        verdict = Verdict(DEFECT, f"{type(error).__name__}: {error}")
    if folder is not None:
        write_verdict(folder, verdict)
    if UNDER_RUN not in os.environ and (verdict.exit_code or World.find().rank == 0):
        print(verdict.message, file=sys.stderr if verdict.exit_code else sys.stdout)
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
