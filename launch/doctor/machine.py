"""Memory, disks, cores, compiler and hub, as findings. Probes that ask are below, judgements above."""

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.doctor.finding import Finding
from launch.hardware import Profile

GIB = 2**30
MEMORY_BYTES = 4 * GIB
"""For each process, assumed: torch, a model of base size and its optimizer where they lie in CPU memory."""
DISK_BYTES = 10 * GIB
"""For checkpoints of a model of base size (2 GiB each) and the prepared text, assumed."""
LEAST_DISK_BYTES = GIB
SHM_BYTES = 66 * 2**20
"""For each process: DeepSpeed's CPU workspace is 2 x 1 MiB + 2 x 32 MiB; NCCL's buffers are of that size."""
NETWORK_TYPES = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "smbfs", "9p", "afs", "glusterfs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse",
}  # fmt: skip
HUB_SECONDS = 3


def judge_memory(available_bytes: int, profile: Profile) -> Finding:
    """CPU memory that is free, against what the profile's processes take."""
    needed = MEMORY_BYTES * profile.devices
    found, wanted = f"{_gib(available_bytes)} free", f"{_gib(needed)} (assumed)"
    if available_bytes >= needed:
        return Finding("CPU memory", "ok", found, wanted)
    return Finding(
        "CPU memory",
        "note",
        found,
        wanted,
        "free memory, raise the container's limit, or take fewer --devices",
    )


def judge_shm(size_bytes: int | None, profile: Profile) -> Finding:
    """The size of /dev/shm, over which processes of one machine exchange gradients."""
    needed = SHM_BYTES * profile.devices
    if size_bytes is None:
        return Finding("/dev/shm", "ok" if profile.devices == 1 else "note", "there is none")
    found, wanted = f"{size_bytes / 2**20:,.0f} MiB", f"{needed / 2**20:,.0f} MiB"
    if size_bytes >= needed:
        return Finding("/dev/shm", "ok", found, wanted)
    state = "lacks" if profile.devices > 1 else "note"
    return Finding("/dev/shm", state, found, wanted, "docker run --shm-size=2g (docker's default is 64 MB)")


def judge_disk(what: str, place: Path, free_bytes: int) -> Finding:
    """Free space where something is written."""
    found, wanted = f"{_gib(free_bytes)} free at {place}", f"{_gib(DISK_BYTES)} (assumed)"
    if free_bytes >= DISK_BYTES:
        return Finding(f"disk, {what}", "ok", found, wanted)
    state = "lacks" if free_bytes < LEAST_DISK_BYTES else "note"
    remedy = "make room, or name another --output" if what == "runs" else "make room, or set MASKWRIGHT_CACHE"
    return Finding(f"disk, {what}", state, found, wanted, remedy)


def judge_file_system(what: str, place: Path, kind: str) -> Finding:
    """The kind of file system, of which network ones keep fewer promises."""
    name = f"file system, {what}"
    if kind.lower() not in NETWORK_TYPES:
        return Finding(name, "ok", kind)
    if what == "runs":
        return Finding(
            name, "note", f"{kind} at {place}", remedy="nothing: several machines want a shared one"
        )
    remedy = (
        "set MASKWRIGHT_CACHE to a local disk: stores are mapped into memory and locked between processes"
    )
    return Finding(name, "note", f"{kind} at {place}", "a local one", remedy)


def judge_cores(num_cores: int, profile: Profile) -> Finding:
    """Cores that this process may use, against the processes of the profile."""
    if num_cores >= profile.devices:
        return Finding("cores", "ok", str(num_cores), str(profile.devices))
    remedy = "ask for more cores (taskset, the container, --cpus-per-task), or take fewer --devices"
    return Finding("cores", "note", str(num_cores), str(profile.devices), remedy)


def judge_compiler(find: Callable[[str], str | None], ops: Sequence[str], profile: Profile) -> list[Finding]:
    """The C++ compiler and ninja, for the ops that DeepSpeed compiles at first use.

    Args:
        find: the path of a program, or None (`shutil.which`).
        ops: that the profile compiles; without any, nothing of it is lacking.
        profile: a GPU's may use Triton, which wants a C compiler.
    """
    findings = []
    compiler = os.environ.get("CXX", "g++")
    for name, program, remedy in (
        ("C++ compiler", compiler, "apt-get install g++ (or set CXX)"),
        ("ninja", "ninja", "pip install ninja"),
    ):
        path = find(program)
        if path is not None:
            findings.append(Finding(name, "ok", path))
        elif ops:
            findings.append(Finding(name, "lacks", "none", f"for {', '.join(ops)}", remedy))
        else:
            findings.append(Finding(name, "ok", "none", "not by this profile"))
    if profile.gpu is not None and profile.gpu.has_bf16 and not any(map(find, ("cc", "gcc", "clang"))):
        text = "for --attention flash (Triton compiles a small C file)"
        findings.append(Finding("C compiler", "note", "none", text, "apt-get install gcc"))
    return findings


def judge_hub(
    environment: Mapping[str, str], ask: Callable[[str], str | None], *, is_offline: bool
) -> list[Finding]:
    """Whether models and datasets of a hub can be had.

    Args:
        environment: variables; a token's value is never looked at.
        ask: an address -> why it did not answer; None: it did.
        is_offline: do not ask.
    """
    cache = Path(environment.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    own = f"{cache} ({'there' if cache.is_dir() else 'not there yet'})"
    token = "set" if environment.get("HF_TOKEN") or (cache / "token").is_file() else "not set"
    rest = [Finding("hub cache", "ok", own), Finding("hub token", "ok", token, "for private models only")]
    if environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return [Finding("hub", "note", "HF_HUB_OFFLINE is set: only what is in the cache"), *rest]
    if is_offline:
        return [Finding("hub", "note", "not asked (--offline)"), *rest]
    address = environment.get("HF_ENDPOINT") or "https://huggingface.co"
    problem = ask(address)
    if problem is None:
        return [Finding("hub", "ok", f"{_strip(address)} answers"), *rest]
    return [
        Finding(
            "hub", "note", f"{_strip(address)} does not answer: {problem}", "for recipes that name a hub id",
            "set HF_HUB_OFFLINE=1 and name local folders, or see to the network (HTTPS_PROXY)",
        ),
        *rest,
    ]  # fmt: skip


def _strip(address: str) -> str:
    """An address without a user and a password in it."""
    scheme, mark, rest = address.rpartition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _gib(number: float) -> str:
    return f"{number / GIB:,.1f} GiB"


def find_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of CPU memory that are free, within a container's limit."""
    lines = dict(line.split(":", 1) for line in proc.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except FileNotFoundError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def find_shm(place: Path = Path("/dev/shm")) -> int | None:
    """The size of the shared memory in bytes; None: there is none."""
    return shutil.disk_usage(place).total if place.is_dir() else None


def find_parent(place: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    place = place.absolute()
    return next(folder for folder in (place, *place.parents) if folder.exists())


def read_file_system(place: Path, mounts: str) -> str:
    """The kind of file system that a folder lies on, by the lines of /proc/mounts."""
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        point, found = line.split(" ")[1:3]
        point = point.replace("\\040", " ")
        if place.is_relative_to(point) and len(point) >= best:  # of two at one point the later one is seen
            best, kind = len(point), found
    return kind


def ask_hub(address: str) -> str | None:
    """Whether an address answers at all; None: it does, else why not."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # an answer, if not the one that was asked for
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None
