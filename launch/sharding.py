"""Sharding: what DeepSpeed splits over the ranks and what it keeps in CPU memory.

A file of ds_configs says both, and nothing else does. What the recipe or the plan decides is `auto` in it.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from launch.recipe_file import ROOT

DS_CONFIGS = ROOT / "ds_configs"
NONE = "none"
"""The name of no sharding: one process, or DDP."""

_HOMES = {
    "train_micro_batch_size_per_gpu": "the plan (--micro-batch)",
    "train_batch_size": "training.global_batch of the recipe",
    "gradient_accumulation_steps": "the plan (it follows from the global batch and the micro-batch)",
    "gradient_clipping": "training.max_grad_norm of the recipe",
    "optimizer": "training of the recipe",
    "scheduler": "training.schedule of the recipe",
    "fp16": "precision of the recipe",
    "bf16": "precision of the recipe",
}
"""Where the numbers live that a DeepSpeed file could say too."""


class ShardingError(ValueError):
    """There is no such file, or it is not a DeepSpeed configuration."""


@dataclass(frozen=True)
class Sharding:
    """A DeepSpeed file, read.

    Attributes:
        name: the stem of a shipped file, a path, or `none`.
        zero_stage: 0-3; None without DeepSpeed.
        offload: what lies in CPU memory; parameters include the optimizer.
        config: the file.
    """

    name: str
    zero_stage: int | None = None
    offload: Literal["optimizer", "parameters"] | None = None
    config: Mapping[str, Any] | None = None

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed runs it."""
        return self.config is not None

    @property
    def bucket_elements(self) -> int | None:
        """Gradients that are exchanged at a time; None: as many as DeepSpeed wants."""
        size = self.config["zero_optimization"].get("reduce_bucket_size") if self.config else None
        return int(size) if isinstance(size, int | float) else None

    @property
    def overlaps(self) -> bool:
        """Whether gradients are exchanged beside the backward, which takes a second bucket."""
        if self.config is None:
            return False
        wanted = self.config["zero_optimization"].get("overlap_comm")
        return self.zero_stage == 3 if wanted is None else bool(wanted)

    def find_errors(self) -> list[str]:
        """What the file says that cannot work or is said elsewhere."""
        if self.config is None:
            return []
        where, zero = f"sharding {self.name}", self.config["zero_optimization"]
        errors = [
            f"{where}: {key} has its home in {home}; set it to auto, or take it out"
            for key, home in _HOMES.items()
            if key in self.config and not _is_open(self.config[key])
        ]
        if self.zero_stage == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            errors.append(
                f"{where}: ZeRO-3 leaves each rank a part of the weights, and without "
                "stage3_gather_16bit_weights_on_model_save no model could be saved; set it to true"
            )
        if self.zero_stage == 0:
            errors.append(
                f"{where}: under stage 0 DeepSpeed updates weights with gradients that are no numbers, and "
                "tells no norm of them; leave --sharding out for plain ranks, or take stage 1 to 3"
            )
        if "offload_param" in zero and self.zero_stage != 3:
            errors.append(
                f"{where}: offload_param wants ZeRO stage 3, the file says {self.zero_stage}; raise the "
                "stage, or take offload_param out"
            )
        if "offload_param" in zero and "offload_optimizer" not in zero:
            errors.append(f"{where}: offload_param without offload_optimizer saves little; give both")
        return errors


def _is_open(value: Any) -> bool:
    return value == "auto" or (isinstance(value, Mapping) and set(value.values()) == {"auto"})


def list_shardings() -> list[str]:
    """`none` and the names of the shipped files."""
    return [NONE, *sorted(path.stem for path in DS_CONFIGS.glob("*.json"))]


@cache
def read_sharding(name: str) -> Sharding:
    """A shipped file by its name, an own one by its path, or `none`.

    Raises:
        ShardingError: there is no such file, or it names no ZeRO stage.
    """
    if name == NONE:
        return Sharding(NONE)
    path = Path(name) if name.endswith(".json") else DS_CONFIGS / f"{name}.json"
    if not path.is_file():
        near = difflib.get_close_matches(name, list_shardings(), n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]}?" if near else f"known: {', '.join(list_shardings())}, or a .json file"
        )
        raise ShardingError(f"no sharding {name!r}; {hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        zero = config["zero_optimization"]
        stage = zero["stage"]
    except (ValueError, TypeError, KeyError) as error:
        raise ShardingError(
            f"sharding {name}: no DeepSpeed configuration with zero_optimization.stage ({error!r})"
        ) from error
    if stage not in (0, 1, 2, 3):
        raise ShardingError(f"sharding {name}: zero_optimization.stage is {stage!r}; wanted 0, 1, 2 or 3")
    return Sharding(name, stage, _find_offload(zero), config)


def _find_offload(zero: Mapping[str, Any]) -> Literal["optimizer", "parameters"] | None:
    def lies_elsewhere(key: str) -> bool:
        return zero.get(key, {}).get("device", "none") != "none"

    if lies_elsewhere("offload_param"):
        return "parameters"
    return "optimizer" if lies_elsewhere("offload_optimizer") else None


def fill_config(
    sharding: Sharding,
    *,
    micro_batch: int,
    accumulation: int,
    max_grad_norm: float | None,
    precision: str,
) -> dict[str, Any]:
    """The DeepSpeed file with every `auto` replaced."""
    assert sharding.config is not None
    return {
        **sharding.config,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # Accelerate would turn `auto` into 1.0; 0 is DeepSpeed's word for no clipping.
        "gradient_clipping": max_grad_norm or 0.0,
        "fp16": {"enabled": precision == "fp16"},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
