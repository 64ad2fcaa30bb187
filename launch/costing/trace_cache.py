"""Traces: what a model's step allocates, found without a GPU in a child process, and kept in the cache.

A trace holds straight lines in the number of rows, so that any micro-batch is arithmetic.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from data_pipes.files import find_cache_root, write_atomically

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Kernel = Literal["eager", "fast", "flash"]

TRACE_VERSION = 3
"""Raised when the same request would be answered otherwise, or in other words."""
ROOT = Path(__file__).resolve().parent.parent.parent
NUM_CHUNKS = 3
"""Chunks of the loss where it is traced in chunks: a first, a middle and a last one."""
_SECONDS = 300


class TraceError(Exception):
    """The child process that traces failed; the message is its last line."""


@dataclass(frozen=True)
class Shape:
    """What is traced: a model and the rows that it reads.

    Attributes:
        sizes: configuration of the masked language model, as `launch.costing.sizes.find_sizes` gives it.
        row_length: slots of a row, padding included.
        num_targets: hidden slots of a row, on average.
        discriminator: configuration of the discriminator of replaced-token detection.
        device: `cuda`, or `cpu` for the kernels that run there.
    """

    sizes: Mapping[str, Any]
    row_length: int
    num_targets: int
    discriminator: Mapping[str, Any] | None = None
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True)
class Trace:
    """A shape, a precision and a kernel in numbers.

    Attributes:
        num_parameters: of the model, or of both of a pair.
        num_trained: those that get a gradient.
        num_largest: of the largest parameter.
        buffer_bytes: of tensors that are no parameters.
        num_classes: of the head.
        num_targets: of a row.
        device: of the shape.
        lines: for each way to run a step (see `name_way`) the moments that can be the worst: bytes of each
            kind of `KINDS`, as a constant and what each row adds.
        origin: `traced`, or `cached trace` where it was found.
    """

    num_parameters: int
    num_trained: int
    num_largest: int
    buffer_bytes: int
    num_classes: int
    num_targets: int
    device: str
    lines: Mapping[str, list[list[list[float]]]]
    origin: Literal["traced", "cached trace"] = "traced"


def name_way(mode: str, checkpointing: bool, is_chunked: bool) -> str:
    """The key of a trace's lines.

    `mode` is `autocast` (weights in fp32), `half` (as DeepSpeed has them) or `full` for fp32 throughout.
    """
    return f"{mode}{' checkpointing' if checkpointing else ''}{' chunked' if is_chunked else ''}"


def find_trace(shape: Shape, precision: str, kernel: str, *, cache_root: Path | None = None) -> Trace | None:
    """The trace that is in the cache; never starts anything."""
    try:
        found = json.loads(_find_file(_make_request(shape, precision, kernel), cache_root).read_bytes())
        return replace(Trace(**found), origin="cached trace")
    except (OSError, ValueError, TypeError):
        return None


def trace_model(shape: Shape, precision: str, kernel: str, *, cache_root: Path | None = None) -> Trace:
    """The trace from the cache, else from a child process (5 s on two cores).

    Raises:
        TraceError: the child failed.
    """
    found = find_trace(shape, precision, kernel, cache_root=cache_root)
    if found is not None:
        return found
    request = _make_request(shape, precision, kernel)
    answer = run_child(request)
    # A cache that cannot be written costs the next call its seconds, no more.
    with suppress(OSError):
        write_atomically(_find_file(request, cache_root), json.dumps(answer).encode())
    return Trace(**answer)


def run_child(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a trace, from `python -m launch.costing.trace`.

    Raises:
        TraceError: it failed, or gave something else.
    """
    command = [sys.executable, "-m", "launch.costing.trace"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise TraceError(f"the memory trace failed: {error}") from error
    lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode} and no message"]
    raise TraceError(f"the memory trace failed: {lines[-1]}")


def _make_request(shape: Shape, precision: str, kernel: str) -> dict[str, Any]:
    # fp32 and TF32 differ in the multiplier units alone, `flash` and `fast` not at all in what is traced.
    return {
        **asdict(shape),
        "precision": "fp32" if precision == "tf32" else precision,
        "kernel": "fast" if kernel == "flash" else kernel,
    }


def _find_file(request: Mapping[str, Any], cache_root: Path | None) -> Path:
    versions = {"trace": TRACE_VERSION, **{name: version(name) for name in ("torch", "transformers")}}
    text = json.dumps({"versions": versions, "request": request}, sort_keys=True)
    return find_cache_root(cache_root) / "traces" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
