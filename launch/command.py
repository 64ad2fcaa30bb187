"""The command of a plan: text only, the same text for the same plan."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.hardware import Profile
from launch.plan import Plan
from launch.rendering import ACCELERATE_NAME


def build_command(
    plan: Plan, profile: Profile, recipe: str, *, output: Path, extra: Sequence[str] = ()
) -> list[str]:
    """The `accelerate launch` line that executes a plan.

    What the plan has decided is said in it, so that no trainer has to decide it again.

    Args:
        plan: the plan.
        profile: the profile that it was made for.
        recipe: the recipe as the user named it.
        output: the run folder, where the configuration files are rendered.
        extra: further arguments of the trainer (`--resume never`, `dotted.key=value`).
    """
    launcher = ["accelerate", "launch", "--config_file", f"{shown(output)}/{ACCELERATE_NAME}"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if plan.nodes > 1:
        launcher += ["--machine_rank", "$NODE_RANK", "--main_process_ip", "$MASTER_ADDR"]
        launcher += ["--main_process_port", "$MASTER_PORT"]
        # Accelerate reads it from the command line only: its default there hides what a file says.
        launcher += ["--rdzv_backend", plan.rendezvous] if plan.rendezvous != "static" else []
    trainer = ["-m", "launch.train", recipe, "--output", shown(output)]
    trainer += ["--devices", str(plan.devices), "--nodes", str(plan.nodes)]
    if profile.name == "gpu" and profile.gpu:
        trainer += ["--gpu-memory-gb", f"{profile.gpu.memory_gb:g}"]
        trainer += ["--compute-capability", f"{profile.gpu.compute_capability:g}"]
    else:
        trainer += ["--profile", profile.name]
    trainer += ["--sharding", plan.sharding, "--micro-batch", str(plan.micro_batch)]
    trainer += ["--checkpointing", "on" if plan.gradient_checkpointing else "off"]
    trainer += ["--loss-chunk", str(plan.loss_chunk or "off"), "--attention", plan.attention]
    return [*launcher, *trainer, *extra]


def build_environment(plan: Plan, profile: Profile, num_cores: int) -> dict[str, str]:
    """The variables that the command is started with."""
    if profile.gpu is not None:
        return {}
    # DeepSpeed, which Accelerate imports where it is installed, looks for an accelerator of its own choice
    # unless it is told.
    return {"OMP_NUM_THREADS": str(max(1, num_cores // plan.devices)), "DS_ACCELERATOR": "cpu"}


def command_text(plan: Plan) -> str:
    """The command and its environment as one line for a shell; `$NODE_RANK` and the like are left open."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    words = [word if word.startswith("$") else shlex.quote(word) for word in plan.command]
    return " ".join([*variables, *words])


def shown(path: Path) -> str:
    """Relative to the working folder where it lies below it."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
