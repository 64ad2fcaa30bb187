"""Profiles: what a machine is and how a run is laid out on it."""

import difflib
import shutil
import subprocess
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from launch.recipe_file import ROOT
from launch.sharding import NONE
from launch.strict_yaml import load_yaml

ACCELERATE_CONFIGS = ROOT / "accelerate_configs"


class ProfileError(ValueError):
    """There is no such profile."""


class Peaks(BaseModel):
    """Dense products, FLOP/s, by what they are computed in; null: not known, no MFU and no time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    half: float | None = Field(default=None, gt=0)
    """bf16, or fp16 with fp32 sums where there is no bf16."""
    tf32: float | None = Field(default=None, gt=0)
    fp32: float | None = Field(default=None, gt=0)


class Gpu(BaseModel):
    """One GPU, as its maker describes it. Bandwidths are bytes/s in one direction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_gb: float = Field(gt=0)
    """GiB that `nvidia-smi` shows."""
    compute_capability: float = Field(ge=3)
    peaks: Peaks = Peaks()
    memory_bandwidth: float | None = Field(default=None, gt=0)
    host_bandwidth: float | None = Field(default=None, gt=0)
    """To the CPU's memory: 12e9 is what PCIe 3 x16 gives."""
    device_bandwidth: float | None = Field(default=None, gt=0)
    """To the other GPUs of the machine; null: over the host."""

    @property
    def has_bf16(self) -> bool:
        """Tensor cores for bf16 came with compute capability 8.0."""
        return self.compute_capability >= 8.0

    def peak_flops(self, precision: str) -> float | None:
        """FLOP/s in a precision of the plan."""
        return getattr(self.peaks, precision if precision in ("tf32", "fp32") else "half")


class Profile(BaseModel):
    """Hardware and preferences; nothing in it changes what a run computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    gpu: Gpu | None = None
    devices: int = Field(default=1, ge=1)
    sharding: str | None = None
    """A file of ds_configs by name; null: none, or what the ladder takes."""
    micro_batch: int | None = None
    """Rows at a time, for a CPU; a GPU's follows from its memory."""
    network_bandwidth: float = Field(default=12.5e9, gt=0)
    """Between machines, bytes/s; 12.5e9 (100 Gbit/s) is assumed where a profile says nothing."""

    def topology(self, sharding: str, num_processes: int) -> Path:
        """The file of accelerate_configs for so many processes: one needs no process group, several do."""
        if sharding != NONE:
            own = ACCELERATE_CONFIGS / f"{sharding}.yaml"
            return own if own.is_file() else ACCELERATE_CONFIGS / "zero2.yaml"
        on_cpu = self.gpu is None
        names = ("cpu-ddp" if on_cpu else "ddp") if num_processes > 1 else ("cpu" if on_cpu else "gpu")
        return ACCELERATE_CONFIGS / f"{names}.yaml"


@cache
def load_profiles() -> dict[str, Profile]:
    """The shipped profiles by name."""
    raw = load_yaml((Path(__file__).parent / "profiles.yaml").read_text(encoding="utf-8"))
    gpus = {name: Gpu(**values) for name, values in raw["gpus"].items()}
    return {
        name: Profile(**{**values, "name": name, "gpu": gpus[values["gpu"]] if "gpu" in values else None})
        for name, values in raw["profiles"].items()
    }


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
        summary = f"a GPU of {gpu_memory_gb:g} GB, compute capability {compute_capability}"
        return Profile(name="gpu", summary=summary, gpu=gpu)
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
        if profile.gpu and near and profile.gpu.compute_capability == capability and not profile.sharding:
            return profile
    return find_profile("gpu", memory_mib / 1024, capability)
