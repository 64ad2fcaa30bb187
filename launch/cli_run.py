"""The verbs `plan` and `run`: what a job will be, and the job."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from launch.hardware import ProfileError
from launch.lock import find_holders, refuse_held
from launch.plan import Plan
from launch.recipe_check import RecipeError
from launch.request import Request, add_arguments
from launch.slurm import add_slurm, submit_run
from launch.steps import SIZE_WANTED
from launch.verdict import REQUEST

EXIT_CODES = """exit codes:
  0 done   1 a defect of ours   2 the request is wrong   3 the machine lacks something
  4 nothing usable to resume from   5 diverged   6 a rank was lost or stalled
  7 the folder is held by another run   143 stopped by a signal"""


def add_run(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both verbs."""
    plan = add(
        "plan", _plan, "resolve and check a job before anything runs",
        "plan deberta-v3-base-paleo-wwm --profile a100-40gb data.expected_tokens=50_000_000",
    )  # fmt: skip
    add_arguments(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    memory = plan.add_mutually_exclusive_group()
    memory.add_argument("--no-memory", action="store_true", help="leave the memory prediction out")
    memory.add_argument("--memory", action="store_true", help="predict memory on a CPU too")
    plan.add_argument(
        "--calibrate", action="store_true", help="run ten steps here and measure instead of assuming"
    )
    run = add(
        "run", _run, "plan a job, then train it through accelerate launch",
        "run canine-tiny-domains-char --profile cpu-2proc training.max_steps=500", after=EXIT_CODES,
    )  # fmt: skip
    add_arguments(run)
    add_slurm(run)
    run.add_argument("--dry-run", action="store_true", help="print the command that would be executed")


def _plan(arguments: argparse.Namespace) -> int:
    try:
        request = Request.of(arguments)
    except (RecipeError, ProfileError) as error:
        if arguments.json:
            reasons = [str(problem) for problem in getattr(error, "problems", [error])]
            print(json.dumps({"errors": reasons}, indent=2))  # noqa: T201
        raise
    mode: Any = "none" if arguments.no_memory else "traced" if arguments.memory else None
    plan = _make_plan(request, mode)
    if arguments.calibrate and not plan.errors:
        _calibrate(request, plan)
        plan = _make_plan(request, mode)
    _render(request, plan)
    if arguments.json:
        print(plan.model_dump_json(indent=2))  # noqa: T201
    else:
        from launch.plan_view import print_plan

        print_plan(plan, request.recipe)
    return REQUEST if plan.errors else 0


def _make_plan(request: Request, memory: Any = None) -> Plan:
    """The plan; a spinner on stderr while a model is traced."""
    memory = memory or request.default_memory()
    waiting: Any = nullcontext()
    if memory == "traced":
        from launch.terminal import Console

        waiting = Console(stderr=True).status("predicting memory (some 15 s the first time)")
    with waiting:
        return request.plan(memory)


def _render(request: Request, plan: Plan) -> None:
    """Leave the configuration files where the command wants them, unless a run has its own there."""
    from launch.rendering import write_configs

    is_used = (request.output / "metrics.jsonl").exists() or find_holders(request.output)
    if plan.errors or is_used:
        return
    try:
        write_configs(request.render(plan), request.output)
    except OSError as error:
        print(f"maskwright: the configuration files are not written: {error}", file=sys.stderr)  # noqa: T201


def _calibrate(request: Request, plan: Plan) -> None:
    """Run a few steps of the plan as it is and keep what they took."""
    from launch.calibrate import OVERRIDES, check_verdict, make_folder, read_calibration
    from launch.console import prepare_with_progress
    from launch.run import execute

    if plan.corpus_origin != "prepared" and not request.recipe.data.streaming:
        prepare_with_progress(request.recipe)
        plan = _make_plan(request)
    with make_folder() as folder:
        settled = request.settle(plan, Path(folder) / "run", OVERRIDES)
        short = settled.plan(settled.default_memory())
        check_verdict(execute(short, settled.render(short), settled.output))
        read_calibration(settled.output, request.recipe, plan)


def _run(arguments: argparse.Namespace) -> int:
    from launch.command import command_text
    from launch.console import prepare_with_progress, print_verdict
    from launch.plan_view import print_plan
    from launch.pulse import keep_streams
    from launch.run import execute

    request = Request.of(arguments)
    refuse_held(request.output)
    plan = _make_plan(request)
    if arguments.slurm and not plan.errors:
        return submit_run(plan, arguments, has_gpus=request.profile.gpu is not None)
    if arguments.dry_run and not plan.errors:
        print(command_text(plan))  # noqa: T201
        return 0
    is_refused = not all(SIZE_WANTED in error for error in plan.errors)
    if not is_refused and plan.corpus_origin != "prepared" and not request.recipe.data.streaming:
        prepare_with_progress(request.recipe)
        plan = _make_plan(request)
    print_plan(plan, request.recipe)
    if plan.errors:
        return REQUEST
    verdict = execute(plan, request.render(plan), request.output)
    with suppress(OSError):
        keep_streams(request.output)  # the terminal may have been closed; the exit code is wanted still
    print_verdict(verdict)
    return verdict.exit_code
