"""The world a trainer finds itself in: what the launcher started, read before torch is imported."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from launch.hardware import Profile
from launch.plan import Plan
from launch.sharding import DS_CONFIGS, list_shardings, read_sharding
from launch.verdict import MACHINE, REQUEST, RunError


@dataclass(frozen=True)
class World:
    """What the environment variables of a launcher say.

    Attributes:
        size, rank: over all machines.
        local_size, local_rank: on this machine.
        sharding: the DeepSpeed file that `accelerate launch` was given (a shipped one by its name), if any.
        launched: whether a launcher set any of it.
    """

    size: int
    rank: int
    local_size: int
    local_rank: int
    sharding: str | None
    launched: bool

    @classmethod
    def find(cls) -> "World":
        """Read the variables of torchrun and Accelerate."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        sharding = None
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            sharding = _name_sharding(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""))
        return cls(
            size=size,
            rank=int(os.environ.get("RANK", "0")),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            sharding=sharding,
            launched="WORLD_SIZE" in os.environ,
        )

    def default_profile(self, has_gpu: bool) -> str | None:
        """The profile of a trainer that was given none; None: the machine's own, by its GPU."""
        if has_gpu:
            return None
        return "cpu" if self.size == 1 else "cpu-2proc"

    def fill(self, arguments: argparse.Namespace) -> None:
        """Put what the launcher says where the command line says nothing."""
        if arguments.devices is None and self.launched:
            arguments.devices, arguments.nodes = self.local_size, max(1, self.size // self.local_size)
        if arguments.sharding is None:
            arguments.sharding = self.sharding

    def check(self, plan: Plan) -> None:
        """Stop when the launcher did not start what the plan says.

        Raises:
            RunError: another number of processes, another engine, or no GPU where one is planned.
        """
        if self.size != plan.world_size:
            raise RunError(
                REQUEST,
                f"the plan ({plan.profile}, {plan.devices} devices, {plan.nodes} machines) wants "
                f"{plan.world_size} processes, the launcher started {self.size}; start it with "
                f"`maskwright run`, or give --devices what the launcher is given",
            )
        found = read_sharding(self.sharding) if self.sharding is not None else None
        if found is not None and (found.zero_stage, found.offload) != (plan.zero_stage, plan.offload):
            raise RunError(
                REQUEST,
                f"the launcher was given {self.sharding} (ZeRO-{found.zero_stage}, offload {found.offload}), "
                f"the plan wants {plan.sharding} (ZeRO-{plan.zero_stage}, offload {plan.offload}); give "
                "--sharding what the launcher is given",
            )


def _name_sharding(path: str) -> str:
    """A shipped file by its name, any other by its path.

    Raises:
        RunError: it was given none.
    """
    if not path:
        raise RunError(
            REQUEST,
            "the launcher's own DeepSpeed settings have a second home for what ds_configs says; give it a "
            "deepspeed_config_file (accelerate_configs/zero2.yaml, for instance)",
        )
    name = Path(path).stem
    return name if Path(path).parent.name == DS_CONFIGS.name and name in list_shardings() else path


def has_cuda_driver() -> bool:
    """Whether an NVIDIA driver is loaded; needs no torch."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def check_gpu(plan: Plan, profile: Profile) -> None:
    """Stop when the profile is a GPU's and torch sees none.

    Raises:
        RunError: with what torch sees.
    """
    import torch

    if profile.gpu is not None and torch.cuda.device_count() < plan.devices:
        raise RunError(
            MACHINE,
            f"the profile {profile.name} wants {plan.devices} GPUs, torch {torch.__version__} sees "
            f"{torch.cuda.device_count()}; use a CPU profile (maskwright profiles) or a CUDA build of torch",
        )
