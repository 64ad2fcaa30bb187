"""The request: what stands on the command line of `plan`, `run` and the trainer, resolved into a plan."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch.calibrate import find_calibration
from launch.command import build_command, build_environment, shown
from launch.corpus import measure_corpus
from launch.hardware import Profile, detect_profile, find_profile
from launch.liveness import RANK_TIMEOUT
from launch.lock import NO_LOCK
from launch.options import Options
from launch.plan import Plan, make_plan
from launch.recipe import Recipe
from launch.recipe_change import parse_accepted
from launch.recipe_file import read_recipe
from launch.rendering import render_configs
from launch.verdict import REQUEST, RunError

OVERRIDE_HELP = "dotted.key=value, put on the recipe; the value is YAML"


@dataclass(frozen=True)
class Request:
    """A recipe with its overrides, a profile, options and the run folder."""

    reference: str
    recipe: Recipe
    profile: Profile
    options: Options
    output: Path
    resume: str
    overrides: tuple[str, ...]
    accepted: tuple[str, ...] = ()
    """Keys of the recipe whose change a resume may accept."""

    @classmethod
    def of(cls, arguments: argparse.Namespace, default_profile: str | None = None) -> "Request":
        """Read the recipe and the profile that the arguments name.

        Args:
            arguments: parsed by a parser with `add_arguments`.
            default_profile: taken where the arguments name none; else the machine is looked at.

        Raises:
            RecipeError, ProfileError, RunError: they cannot be used.
        """
        recipe = read_recipe(arguments.recipe, arguments.overrides)
        if arguments.gpu_memory_gb is None and arguments.compute_capability is None and not arguments.profile:
            profile = find_profile(default_profile) if default_profile else detect_profile()
        else:
            profile = find_profile(arguments.profile, arguments.gpu_memory_gb, arguments.compute_capability)
        options = Options(
            devices=arguments.devices,
            nodes=arguments.nodes,
            micro_batch=arguments.micro_batch,
            checkpointing=arguments.checkpointing,
            attention=arguments.attention,
            prefer=arguments.prefer,
            sharding=arguments.sharding,
            loss_chunk=arguments.loss_chunk,
            rendezvous=arguments.rendezvous,
        )
        output = Path(arguments.output or Path("runs") / recipe.name)
        resume = arguments.resume
        if resume not in ("auto", "never") and not Path(resume).is_dir():
            raise RunError(REQUEST, f"--resume {resume}: wanted auto, never, or the folder of a checkpoint")
        overrides = tuple(arguments.overrides)
        if arguments.no_lock:
            os.environ[NO_LOCK] = "1"
        accepted = parse_accepted(arguments.accept_changes)
        return cls(arguments.recipe, recipe, profile, options, output, resume, overrides, accepted)

    def plan(self, memory: Literal["traced", "cached", "none"] = "none") -> Plan:
        """Make the plan, with its command and environment; `memory` is that of `make_plan`."""
        corpus = measure_corpus(self.recipe)
        plan = make_plan(self.recipe, self.profile, self.options, corpus, memory=memory)
        calibration = find_calibration(self.recipe, plan)
        if calibration is not None:
            plan = make_plan(
                self.recipe, self.profile, self.options, corpus, memory=memory, calibration=calibration
            )
        extra = [*(() if self.resume == "auto" else ("--resume", self.resume)), *self.overrides]
        extra += ["--accept-changes", ",".join(self.accepted)] if self.accepted else []
        command = build_command(plan, self.profile, self.reference, output=self.output, extra=extra)
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wanted = build_environment(plan, self.profile, num_cores)
        wanted[RANK_TIMEOUT] = str(self.recipe.training.rank_timeout_seconds)
        environment = {name: os.environ.get(name, value) for name, value in wanted.items()}
        found: dict[str, Any] = {"output": str(self.output), "command": command, "environment": environment}
        return plan.model_copy(update=found)

    def settle(self, plan: Plan, output: Path, overrides: Sequence[str]) -> "Request":
        """The same request with nothing left open, further overrides and another folder."""
        options = replace(
            self.options,
            micro_batch=plan.micro_batch,
            checkpointing="on" if plan.gradient_checkpointing else "off",
            loss_chunk=plan.loss_chunk or "off",
            sharding=plan.sharding,
            attention=plan.attention,
        )
        more = (*self.overrides, *overrides)
        recipe = read_recipe(self.reference, more)
        return replace(self, recipe=recipe, options=options, output=output, resume="auto", overrides=more)

    def default_memory(self) -> Literal["traced", "cached", "none"]:
        """On a card memory is predicted; on a CPU only where somebody asks."""
        if self.profile.gpu is None:
            return "none"
        return "cached" if self.options.is_settled else "traced"

    def render(self, plan: Plan) -> dict[str, str]:
        """The configuration files that the plan's command names."""
        return render_configs(plan, self.profile, self.recipe.training, shown(self.output))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe, the options and the overrides, spelt the same for every command."""
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDE_HELP)
    where = parser.add_argument_group("hardware (what is absent, the plan decides)")
    where.add_argument("--profile", help="a name from `maskwright profiles`; default: this machine's")
    where.add_argument("--devices", type=positive, metavar="N", help="processes on one machine")
    where.add_argument("--nodes", type=positive, default=1, metavar="M", help="machines")
    where.add_argument("--micro-batch", type=positive, metavar="N", help="rows on one device at a time")
    where.add_argument("--checkpointing", choices=["on", "off"], help="gradient checkpointing")
    where.add_argument("--attention", metavar="KERNEL", help="auto, eager (the reference), fast or flash")
    where.add_argument(
        "--prefer", choices=["plain", "offload"], help="what to try first when memory is short"
    )
    where.add_argument(
        "--sharding", metavar="NAME", help="none, a file of ds_configs (zero2, zero2-offload, ...), or a path"
    )
    where.add_argument(
        "--loss-chunk", type=_chunk, metavar="N|off", help="targets whose logits exist at a time"
    )
    where.add_argument(
        "--rendezvous", choices=["static", "c10d"], default="static", help="how machines find each other"
    )
    where.add_argument("--gpu-memory-gb", type=float, metavar="GB", help="an own GPU, instead of a profile")
    where.add_argument(
        "--compute-capability", type=float, metavar="CC", help="of the own GPU, 8.0 for instance"
    )
    parser.add_argument("--output", metavar="DIR", help="the run folder; default runs/<recipe name>")
    parser.add_argument(
        "--accept-changes", default="", metavar="KEY[,KEY]", help="keys whose new value a resume takes"
    )
    parser.add_argument(
        "--no-lock", action="store_true", help="for file systems without locks: nothing stops a second run"
    )
    parser.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH", help="where to start from; default auto"
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments in which `key=value` may stand anywhere; argparse alone stops early."""
    arguments, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unknown arguments: {' '.join(unknown or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _chunk(text: str) -> int | str:
    return text if text == "off" else positive(text)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number of at least 1, given {text}")
    return number
