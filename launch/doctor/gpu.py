"""GPUs and the torch that is to use them, as findings. Probes that ask are below, judgements above."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from launch.doctor.finding import Finding
from launch.hardware import Profile

DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""The oldest Linux driver that runs programs of a major CUDA version (NVIDIA's CUDA release notes)."""
_SLACK_GIB = 1.0
"""Cards of one kind show different amounts of memory."""
_NO_TENSOR_CORES = "fp16 with loss scaling, no bf16; Triton kernels get no tensor cores below 8.0"


@dataclass(frozen=True)
class FoundGpu:
    """A GPU as nvidia-smi shows it: GiB, NVIDIA's compute capability, the driver's version."""

    name: str
    memory_gib: float
    compute_capability: float
    driver: str


@dataclass(frozen=True)
class FoundTorch:
    """The torch build of this environment, or why it cannot be imported.

    Attributes:
        version: with its local part, `2.13.0+cpu`.
        cuda: the CUDA version it is built for; None: not for CUDA.
        num_gpus: that it can use.
        architectures: that it has kernels for: `sm_75`, or `compute_90` for newer ones too.
        problem: the last line of a failed import.
    """

    version: str = ""
    cuda: str | None = None
    num_gpus: int = 0
    architectures: tuple[str, ...] = ()
    problem: str = ""


def judge_gpus(gpus: Sequence[FoundGpu], profile: Profile, system: tuple[str, str]) -> list[Finding]:
    """Whether the cards are those of the profile.

    Args:
        gpus: that nvidia-smi shows.
        profile: that is asked about.
        system: `platform.system()` and `platform.machine()`.
    """
    if profile.gpu is None:
        if system == ("Darwin", "arm64"):
            text = "an Apple GPU (MPS), which is left out: training runs on the CPU"
            return [Finding("GPU", "note", text, remedy="nothing; CPU profiles work here")]
        if gpus:
            text = f"{_describe(gpus)}; a CPU profile does not use it"
            return [Finding("GPU", "note", text, remedy="leave --profile out to take the GPU's")]
        return [Finding("GPU", "ok", "none", "none")]
    wanted = f"{profile.devices} with {profile.gpu.memory_gb:g} GiB, compute capability "
    wanted += f"{profile.gpu.compute_capability:g}"
    if not gpus:
        apple = "an Apple GPU (MPS), which is left out" if system == ("Darwin", "arm64") else "none"
        return [
            Finding(
                "GPU", "lacks", f"{apple}; nvidia-smi shows no card", wanted,
                "install NVIDIA's driver (nvidia-smi must list the card), or take --profile cpu",
            )
        ]  # fmt: skip
    fitting = [
        gpu
        for gpu in gpus
        if gpu.memory_gib >= profile.gpu.memory_gb - _SLACK_GIB
        and gpu.compute_capability >= profile.gpu.compute_capability
    ]
    state = "ok" if len(fitting) >= profile.devices else "lacks"
    remedy = "" if state == "ok" else "take another --profile (maskwright profiles), or fewer --devices"
    return [Finding("GPU", state, _describe(gpus), wanted, remedy), _judge_precision(gpus)]


def _describe(gpus: Sequence[FoundGpu]) -> str:
    texts = [f"{g.name}, {g.memory_gib:.1f} GiB, compute capability {g.compute_capability:g}" for g in gpus]
    return "; ".join(f"{texts.count(text)} x {text}" for text in dict.fromkeys(texts))


def _judge_precision(gpus: Sequence[FoundGpu]) -> Finding:
    oldest = min(gpu.compute_capability for gpu in gpus)
    if oldest >= 8.0:
        return Finding("precision", "ok", "bf16")
    return Finding(
        "precision", "note", f"compute capability {oldest:g}: {_NO_TENSOR_CORES}", "8.0 for bf16",
        "nothing: precision auto takes fp16, --attention auto no Triton kernel",
    )  # fmt: skip


def judge_torch(torch: FoundTorch, gpus: Sequence[FoundGpu], profile: Profile) -> list[Finding]:
    """Whether torch can use the cards: its build, the driver, kernels for the card, the number it sees."""
    if torch.problem:
        remedy = "install torch anew: https://pytorch.org/get-started"
        return [Finding("torch", "lacks", f"it cannot be imported: {torch.problem}", remedy=remedy)]
    found = f"torch {torch.version}, " + (f"CUDA {torch.cuda}" if torch.cuda else "no CUDA")
    if profile.gpu is None:
        return [Finding("torch", "ok", found)]
    if torch.cuda is None:
        return [
            Finding(
                "torch", "lacks", found, "a build for CUDA",
                "pip uninstall torch, then install a CUDA build: https://pytorch.org/get-started",
            )
        ]  # fmt: skip
    findings = [Finding("torch", "ok", found, "a build for CUDA")]
    findings += _judge_driver(torch.cuda, gpus)
    findings += [_judge_kernels(torch, gpu) for gpu in {gpu.compute_capability: gpu for gpu in gpus}.values()]
    sees = torch.num_gpus >= profile.devices
    remedy = "" if sees else "see CUDA_VISIBLE_DEVICES, the driver and the container's --gpus, or --devices"
    text = f"torch sees {torch.num_gpus}"
    return [
        *findings,
        Finding("GPUs in torch", "ok" if sees else "lacks", text, str(profile.devices), remedy),
    ]


def _judge_driver(cuda: str, gpus: Sequence[FoundGpu]) -> list[Finding]:
    needed = DRIVERS.get(int(cuda.split(".")[0]))
    if needed is None or not gpus:
        return []
    driver, wanted = gpus[0].driver, ".".join(map(str, needed))
    enough = _read_version(driver) >= needed
    remedy = "" if enough else f"update the driver, or take a torch build for an older CUDA than {cuda}"
    return [Finding("driver", "ok" if enough else "lacks", driver, f"{wanted} for CUDA {cuda}", remedy)]


def _read_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _judge_kernels(torch: FoundTorch, gpu: FoundGpu) -> Finding:
    wanted = round(gpu.compute_capability * 10)
    has = False
    for name in torch.architectures:
        kind, _, digits = name.partition("_")
        number = int(digits.rstrip("af") or 0)
        # Machine code runs on later cards of the same generation, PTX (compute_) on all later ones.
        same = number // 10 == wanted // 10 or kind == "compute"
        has = has or (same and number <= wanted)
    known, kernels = bool(torch.architectures), ", ".join(torch.architectures) or "none that it names"
    return Finding(
        "kernels", "ok" if has or not known else "lacks", f"torch has {kernels}",
        f"sm_{wanted} for {gpu.name}",
        "" if has or not known else "take a torch build that still (or already) knows this card",
    )  # fmt: skip


def find_gpus() -> list[FoundGpu]:
    """Ask nvidia-smi; empty where it is not there or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [
        tool,
        "--query-gpu=name,memory.total,compute_cap,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return read_gpus(answer.stdout) if answer.returncode == 0 else []


def read_gpus(text: str) -> list[FoundGpu]:
    """What nvidia-smi wrote: name, MiB, compute capability, driver; cards without figures are left out."""
    gpus = []
    for line in text.splitlines():
        name, memory, capability, driver = (part.strip() for part in line.rsplit(",", 3))
        if memory.replace(".", "").isdigit() and capability.replace(".", "").isdigit():
            gpus.append(FoundGpu(name, float(memory) / 1024, float(capability), driver))
    return gpus


_ASK_TORCH = """
import json, torch
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
    "num_gpus": torch.cuda.device_count(), "architectures": torch.cuda.get_arch_list()}))
"""


def find_torch() -> FoundTorch:
    """Ask torch in a child process: an import that fails, or crashes, is a finding."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return FoundTorch(problem="no answer within 120 s")
    if done.returncode:
        last = done.stderr.strip().splitlines()
        return FoundTorch(problem=last[-1] if last else f"the process ended with {done.returncode}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return FoundTorch(**{**answer, "architectures": tuple(answer["architectures"])})


def find_system() -> tuple[str, str]:
    """The operating system and the kind of processor."""
    return platform.system(), platform.machine()
