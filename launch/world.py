"""The world a trainer finds itself in: what the launcher started, read before torch is imported."""

import os
from dataclasses import dataclass
from pathlib import Path

from launch.hardware import Profile, load_profiles
from launch.plan import Plan
from launch.verdict import MACHINE, REQUEST, RunError


@dataclass(frozen=True)
class World:
    """What the environment variables of a launcher say.

    Attributes:
        size, rank: over all machines.
        local_size, local_rank: on this machine.
        ds_config: name of the DeepSpeed file that `accelerate launch` was given, if any.
        launched: whether a launcher set any of it.
    """

    size: int
    rank: int
    local_size: int
    local_rank: int
    ds_config: str | None
    launched: bool

    @classmethod
    def find(cls) -> "World":
        """Read the variables of torchrun and Accelerate."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        ds_config = None
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            ds_config = Path(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")).stem or "unnamed"
        return cls(
            size=size,
            rank=int(os.environ.get("RANK", "0")),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            ds_config=ds_config,
            launched="WORLD_SIZE" in os.environ,
        )

    def default_profile(self, has_gpu: bool) -> str | None:
        """The profile of a trainer that was given none; None: the machine's own, by its GPU."""
        if has_gpu:
            return None
        if self.ds_config is None:
            return "cpu" if self.size == 1 else "cpu-2proc"
        for profile in load_profiles().values():
            if profile.ds_config == self.ds_config and profile.gpu is None:
                return profile.name
        raise RunError(
            REQUEST, f"no CPU profile uses ds_configs/{self.ds_config}.json; name one with --profile"
        )

    def check(self, plan: Plan, profile: Profile) -> None:
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
        if self.ds_config is not None and self.ds_config != profile.ds_config:
            raise RunError(
                REQUEST,
                f"the launcher was given ds_configs/{self.ds_config}.json, the profile {profile.name} "
                f"{'uses ' + str(profile.ds_config) if profile.ds_config else 'uses no DeepSpeed'}",
            )


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
