"""Profiles: what a machine is and how a run is laid out on it."""

import difflib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from launch.recipe_file import ROOT
from launch.strict_yaml import load_yaml

ACCELERATE_CONFIGS = ROOT / "accelerate_configs"
DS_CONFIGS = ROOT / "ds_configs"


class ProfileError(ValueError):
    """There is no such profile."""


class Gpu(BaseModel):
    """One GPU, as its maker describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_gb: float = Field(gt=0)
    compute_capability: float = Field(ge=3)
    peak_flops: float | None = Field(default=None, gt=0)
    """Dense FLOP/s in the precision that `precision: auto` picks on it; null: not known, no MFU."""

    @property
    def has_bf16(self) -> bool:
        """Tensor cores for bf16 came with compute capability 8.0."""
        return self.compute_capability >= 8.0


class Profile(BaseModel):
    """Hardware and preferences; nothing in it changes what a run computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    accelerate_config: str
    ds_config: str | None = None
    gpu: Gpu | None = None
    devices: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    micro_batch: int | None = None
    micro_batch_tokens: int | None = None

    @property
    def accelerate_path(self) -> Path:
        """The topology file that `accelerate launch` reads."""
        return ACCELERATE_CONFIGS / f"{self.accelerate_config}.yaml"

    def on(self, num_processes: int) -> "Profile":
        """The same hardware with another number of processes: one needs no process group, several do."""
        swap = {
            ("cpu", True): "cpu-ddp",
            ("cpu-ddp", False): "cpu",
            ("gpu", True): "ddp",
            ("ddp", False): "gpu",
        }
        config = swap.get((self.accelerate_config, num_processes > 1), self.accelerate_config)
        return self.model_copy(update={"accelerate_config": config})


@cache
def load_profiles() -> dict[str, Profile]:
    """The shipped profiles by name."""
    raw = load_yaml((Path(__file__).parent / "profiles.yaml").read_text(encoding="utf-8"))
    return {name: Profile(name=name, **values) for name, values in raw.items()}


def find_profile(
    name: str, gpu_memory_gb: float | None = None, compute_capability: float | None = None
) -> Profile:
    """A shipped profile by name, or one described by its GPU.

    Args:
        name: a profile's name; `gpu` with both figures describes a card that has no profile.
        gpu_memory_gb: memory of the card, in GB.
        compute_capability: NVIDIA's number, 7.5 for Turing, 8.0 for A100.

    Raises:
        ProfileError: no such profile, or a card described by half.
    """
    if gpu_memory_gb is not None or compute_capability is not None:
        if gpu_memory_gb is None or compute_capability is None:
            raise ProfileError("an own GPU is described by both --gpu-memory-gb and --compute-capability")
        if gpu_memory_gb <= 0 or compute_capability < 3:
            raise ProfileError(
                f"an own GPU wants --gpu-memory-gb above 0 and --compute-capability of at least 3, given "
                f"{gpu_memory_gb:g} and {compute_capability:g}"
            )
        gpu = Gpu(memory_gb=gpu_memory_gb, compute_capability=compute_capability)
        tokens = max(512, int(gpu_memory_gb / 11 * 4096))
        summary = f"a GPU of {gpu_memory_gb:g} GB, compute capability {compute_capability}"
        return Profile(
            name="gpu", summary=summary, accelerate_config="gpu", gpu=gpu, micro_batch_tokens=tokens
        )
    profiles = load_profiles()
    if name not in profiles:
        near = difflib.get_close_matches(name, profiles, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(profiles)}"
        raise ProfileError(f"no profile {name!r}; {hint}")
    return profiles[name]


def detect_profile() -> Profile:
    """This machine's profile: by the first GPU that nvidia-smi names, else the CPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return load_profiles()["cpu"]
    query = [tool, "--query-gpu=memory.total,compute_cap", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if answer.returncode or not answer.stdout.strip():
        return load_profiles()["cpu"]
    memory_mib, capability = map(float, answer.stdout.splitlines()[0].split(","))
    for profile in load_profiles().values():
        near = profile.gpu and abs(profile.gpu.memory_gb * 1024 - memory_mib) < 2048
        if profile.gpu and near and profile.gpu.compute_capability == capability and not profile.ds_config:
            return profile
    return find_profile("gpu", memory_mib / 1024, capability)


def read_zero(ds_config: str | None) -> tuple[int | None, str | None]:
    """The ZeRO stage and what it offloads (`optimizer`, `parameters`), from the one file that says so."""
    if ds_config is None:
        return None, None
    zero = json.loads((DS_CONFIGS / f"{ds_config}.json").read_text(encoding="utf-8"))["zero_optimization"]
    if "offload_param" in zero:
        return zero["stage"], "parameters"
    return zero["stage"], "optimizer" if "offload_optimizer" in zero else None
