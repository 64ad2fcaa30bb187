"""The origin of a checkpoint: on how many processes and under which sharding it was written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.checkpoints.manifest import read_manifest
from launch.plan import Plan
from launch.sharding import NONE


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        sharding: as a plan names it; None: it was not written down.
        zero_stage: None without DeepSpeed, or not written down.
        is_sharded: DeepSpeed wrote its state.
    """

    world_size: int
    sharding: str | None
    zero_stage: int | None
    is_sharded: bool

    @classmethod
    def read(cls, place: Path, state: Mapping[str, Any], *, is_sharded: bool) -> "Origin":
        """That of a checkpoint.

        Args:
            place: the checkpoint.
            state: the content of its progress.json.
            is_sharded: whether DeepSpeed's files are in it.
        """
        stage = read_manifest(place).get("zero_stage")
        return cls(state["world_size"], state.get("sharding"), stage, is_sharded)

    def is_kept_by(self, plan: Plan) -> bool:
        """Whether what was written fits the job of a plan as it is, without being put together anew."""
        if not self.is_sharded or plan.zero_stage is None:
            return not self.is_sharded and plan.zero_stage is None
        is_same_kind = self.sharding in (None, plan.sharding) and self.zero_stage in (None, plan.zero_stage)
        return is_same_kind and self.world_size == plan.world_size

    def differs(self, plan: Plan) -> bool:
        """Whether the plan has other processes or another sharding."""
        return self.world_size != plan.world_size or not self.is_kept_by(plan)

    def __str__(self) -> str:
        own = self.sharding or (f"ZeRO-{self.zero_stage}" if self.zero_stage else "ZeRO")
        return describe_world(self.world_size, own if self.is_sharded else NONE)


def describe_world(world_size: int, sharding: str) -> str:
    """So many processes and how they share the state, in words."""
    processes = "1 process" if world_size == 1 else f"{world_size:,} processes"
    return processes if sharding == NONE else f"{processes} under {sharding}"
