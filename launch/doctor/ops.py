"""The ops that DeepSpeed compiles at first use, compiled before it, in a child process."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_pipes.files import find_cache_root, write_atomically
from launch.doctor.finding import Finding
from launch.hardware import Profile
from launch.sharding import NONE

SHARED_MEMORY = "ShareMemCommBuilder"
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
