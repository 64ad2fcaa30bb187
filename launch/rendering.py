"""The pair of configuration files that a plan is launched with: every number in it has been decided."""

import json
from pathlib import Path
from typing import Any

import yaml

from data_pipes.files import write_atomically
from launch.hardware import Profile
from launch.plan import Plan
from launch.recipe import Training
from launch.sharding import fill_config, read_sharding
from launch.strict_yaml import load_yaml

ACCELERATE_NAME, DS_NAME = "accelerate.yaml", "ds_config.json"
_HEAD = (
    "# Rendered from the plan for this run; change the recipe, the profile or the options, not this file.\n"
)


def render_configs(plan: Plan, profile: Profile, training: Training, folder: str) -> dict[str, str]:
    """The text of each file by its name: topology, and DeepSpeed's configuration where it runs.

    Args:
        plan: without errors.
        profile: it was made for.
        training: of the recipe.
        folder: where they will lie, as the launcher will be told.
    """
    texts: dict[str, str] = {}
    sharding = read_sharding(plan.sharding)
    topology = load_yaml(profile.topology(plan.sharding, plan.world_size).read_text(encoding="utf-8"))
    topology |= {"num_machines": plan.nodes, "num_processes": plan.world_size}
    if plan.nodes > 1:
        topology.pop("main_process_port", None)
    if sharding.is_deepspeed:
        assert plan.micro_batch is not None
        assert plan.accumulation is not None
        config = fill_config(
            sharding,
            micro_batch=plan.micro_batch,
            accumulation=plan.accumulation,
            max_grad_norm=training.max_grad_norm,
            precision=plan.precision,
        )
        texts[DS_NAME] = json.dumps(config, indent=2) + "\n"
        deepspeed: dict[str, Any] = {
            **topology["deepspeed_config"],
            "deepspeed_config_file": f"{folder}/{DS_NAME}",
        }
        if plan.nodes > 1:
            # Its default, pdsh, logs in to the other machines and starts processes there.
            deepspeed["deepspeed_multinode_launcher"] = "standard"
        topology["deepspeed_config"] = deepspeed
    texts[ACCELERATE_NAME] = _HEAD + yaml.safe_dump(topology, sort_keys=False)
    return texts


def write_configs(texts: dict[str, str], folder: Path) -> list[Path]:
    """Write the files that are not there as they should be, each at once; their paths.

    A finished run stays as it is, to the minute; a file that only an earlier plan had is removed.
    """
    for name in {ACCELERATE_NAME, DS_NAME} - set(texts):
        (folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        place = folder / name
        if not (place.is_file() and place.read_bytes() == text.encode()):
            write_atomically(place, text.encode())
    return [folder / name for name in texts]
