"""The ops that DeepSpeed compiles at first use, compiled before it, in a child process."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_pipes.files import find_cache_root, write_atomically
from launch.doctor.finding import Finding
from launch.hardware import Profile
from launch.sharding import NONE
from launch.verdict import MACHINE, RunError

SHARED_MEMORY = "ShareMemCommBuilder"
_SHARED_MEMORY_FOLDER = "deepspeed_shm_comm"
_PROC = Path("/proc")
_PATIENCE_SECONDS = 10.0
_SECONDS = 900
_NUM_LINES = 3
_BUILD = """
import sys
from deepspeed.accelerator import get_accelerator
module = get_accelerator().create_op_builder(sys.argv[1]).load(verbose=False)
print(module.__file__)
"""


def list_ops(profile: Profile) -> list[str]:
    """The builders of what a profile compiles at first use.

    On a CPU that is the exchange over shared memory, whatever the stage. An optimizer in CPU memory is
    torch's own AdamW, which is compiled already, and on a GPU DeepSpeed then compiles nothing.
    """
    is_deepspeed = profile.sharding not in (None, NONE)
    return [SHARED_MEMORY] if is_deepspeed and profile.gpu is None else []


def find_left_lock(root: Path | None = None) -> Path | None:
    """A lock of torch's compiler that nobody holds: a compile was killed, and every later one waits for ever.

    Whoever compiles keeps the file open; of a process on another machine that cannot be seen, nor without
    /proc, so that a lock younger than an hour is left to it there.

    Args:
        root: where torch keeps what it compiles; None: as it finds it.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    root = root or Path(os.environ.get("TORCH_EXTENSIONS_DIR") or home)
    for lock in [*root.glob(f"{_SHARED_MEMORY_FOLDER}/lock"), *root.glob(f"*/{_SHARED_MEMORY_FOLDER}/lock")]:
        try:
            age_seconds = time.time() - lock.stat().st_mtime
        except FileNotFoundError:  # given back just now
            continue
        if age_seconds > (_PATIENCE_SECONDS if _PROC.is_dir() else 3600) and not _is_open(lock):
            return lock
    return None


def require_no_left_lock(profile: Profile) -> None:
    """Stop before DeepSpeed waits for a lock that nobody will give back.

    Raises:
        RunError: there is one.
    """
    lock = find_left_lock() if list_ops(profile) else None
    if lock is not None:
        raise RunError(MACHINE, f"{lock} was left behind by a compile that was killed; {_remedy(lock)}")


def judge_lock(lock: Path | None) -> list[Finding]:
    """What a lock that was left behind means; nothing where there is none."""
    if lock is None:
        return []
    return [Finding("lock of a compile", "lacks", f"{lock}, held by nobody", "none", _remedy(lock))]


def _remedy(lock: Path) -> str:
    return f"DeepSpeed would wait for it for ever; if nothing compiles on another machine: rm {lock}"


def _is_open(path: Path) -> bool:
    """Whether a process of this machine has a file open; one of somebody else's cannot be looked into."""
    place = path.resolve()
    for descriptor in _PROC.glob("[0-9]*/fd/*"):
        try:
            if descriptor.readlink() == place:
                return True
        except OSError:
            continue
    return False


def build_ops(
    ops: Sequence[str], compile_op: Callable[[str], tuple[int, str, str]], *, may_build: bool
) -> list[Finding]:
    """Each op compiled, or why it cannot be.

    Args:
        ops: names of DeepSpeed's builders.
        compile_op: a name -> exit code, stdout (its last line is the file that was built) and stderr.
        may_build: False: only say which are there already.
    """
    findings = []
    for op in ops:
        name, stamp = f"op {op.removesuffix('Builder')}", find_stamp(op)
        built = _read_stamp(stamp)
        if built is not None:
            findings.append(Finding(name, "ok", f"built: {built}"))
            continue
        if not may_build:
            remedy = "maskwright doctor without --no-build, or the first run compiles it (some 30 s)"
            findings.append(Finding(name, "note", "not built by the doctor (--no-build)", remedy=remedy))
            continue
        code, stdout, stderr = compile_op(op)
        lines = [line for line in (stdout if code == 0 else stderr or stdout).splitlines() if line.strip()]
        if code == 0 and lines:
            write_atomically(stamp, json.dumps(lines[-1]).encode())
            findings.append(Finding(name, "ok", f"built: {lines[-1]}"))
        else:
            reason = " | ".join(lines[-_NUM_LINES:]) or "no word"
            remedy = "install what the compiler asks for, or take a profile without DeepSpeed"
            findings.append(Finding(name, "lacks", f"exit {code}: {reason}", "it must compile", remedy))
    return findings


def find_stamp(op: str) -> Path:
    """The file that remembers a built op, by all that the built file depends on."""
    try:
        versions = [version(name) for name in ("torch", "deepspeed")]
    except PackageNotFoundError:
        versions = []
    parts = [op, sys.version, sys.prefix, os.environ.get("TORCH_EXTENSIONS_DIR", ""), *versions]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return find_cache_root() / "ops" / f"{op}-{key}.json"


def _read_stamp(stamp: Path) -> str | None:
    """The built file that a stamp names, if it is there still."""
    if not stamp.is_file():
        return None
    built = json.loads(stamp.read_text(encoding="utf-8"))
    return built if Path(built).is_file() else None


def compile_in_child(op: str) -> tuple[int, str, str]:
    """Compile an op for the CPU in a child process."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, op],
            capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "", f"not done within {_SECONDS} s"
    return done.returncode, done.stdout, done.stderr
