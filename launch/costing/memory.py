"""Memory of a run, predicted from a trace without a GPU: on the card and of the process.

Predicted are the bytes that torch hands out at the worst moment of a step. Two terms are assumed, for nothing
here can know them: what CUDA takes for itself, and what is lost between blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from launch.costing.states import BUCKET_ELEMENTS, Layout, States, count_states
from launch.costing.trace_cache import (
    NUM_CHUNKS,
    Kernel,
    Precision,
    Shape,
    Trace,
    TraceError,
    find_trace,
    name_way,
    trace_model,
)

__all__ = ["Memory", "Setting", "Shape", "Trace", "TraceError", "find_trace", "predict_memory", "trace_model"]

GIB = 1 << 30
CONTEXT_BYTES = GIB // 2
"""CUDA's context with kernels and workspaces of cuBLAS: assumed."""
NCCL_BYTES = GIB // 4
"""More of it where ranks talk to each other: assumed."""
MARGIN_SHARE = 0.05
"""Of what comes and goes within a step, for gaps between blocks: assumed."""
PROCESS_BYTES = {"cuda": 3 * GIB, "cpu": GIB}
"""Python with torch and its libraries: assumed for CUDA; on a CPU 0.6 GiB were measured."""

KINDS = ("activations", "casts", "logits", "temporaries", "gradients")
"""Of the lines of a trace, in their order (launch/costing/trace_storages.py)."""
IN_WORDS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "states of the optimizer",
    "communication": "buckets of gradients",
    "casts": "half-precision copies of weights",
    "activations": "activations kept for the backward",
    "logits": "logits",
    "temporaries": "temporary tensors",
    "context": "CUDA itself",
    "margin": "gaps between blocks",
    "process": "the process itself",
    "building": "weights while the model is built",
    "buffers": "buffers between card and CPU",
    "snapshot": "copies of the state for saves in the background",
}


@dataclass(frozen=True)
class Setting:
    """How a rank runs a step.

    Attributes:
        micro_batch: rows of a rank at a time.
        precision: that of products of matrices.
        kernel: of DeBERTa's attention.
        checkpointing: layers run forward twice and keep their inputs only.
        loss_chunk: targets whose logits exist at a time; None: all.
        zero_stage: None without DeepSpeed.
        offload: what lies in CPU memory; parameters include the optimizer.
        world_size: ranks over all nodes.
        accumulation: micro-batches of a step.
        bucket_elements: `reduce_bucket_size` of DeepSpeed.
        overlap: `overlap_comm` of DeepSpeed, which takes a second bucket in stages 1 and 2.
        saves_in_background: rank 0 copies what is saved.
    """

    micro_batch: int
    precision: Precision
    kernel: Kernel
    checkpointing: bool = False
    loss_chunk: int | None = None
    zero_stage: int | None = None
    offload: Literal["optimizer", "parameters"] | None = None
    world_size: int = 1
    accumulation: int = 1
    bucket_elements: int = BUCKET_ELEMENTS
    overlap: bool = True
    saves_in_background: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank wants.

    Attributes:
        gpu_bytes: at the worst moment of a step; 0 where there is no GPU.
        cpu_bytes: of the rank's process.
        gpu_terms: add up to `gpu_bytes`.
        cpu_terms: add up to `cpu_bytes`.
        dominant: the largest term of the card, in words; without one that of the process.
        origin: `traced` or `cached trace`.
        assumed: terms that are no prediction; `activations` for the `flash` kernel, whose package keeps what
            is not known here, at most as much as `fast`.
    """

    gpu_bytes: int
    cpu_bytes: int
    gpu_terms: dict[str, int]
    cpu_terms: dict[str, int]
    dominant: str
    origin: str
    assumed: tuple[str, ...] = ()


def predict_memory(trace: Trace, setting: Setting) -> Memory:
    """What a setting wants, in microseconds: nothing is started or read.

    Raises:
        KeyError: the trace is of another precision.
    """
    is_half = setting.precision in ("bf16", "fp16")
    mode = "full" if not is_half else "autocast" if setting.zero_stage is None else "half"
    states = count_states(
        Layout(
            num_parameters=trace.num_parameters,
            num_trained=trace.num_trained,
            num_largest=trace.num_largest,
            weight_bytes=2 if mode == "half" else 4,
            zero_stage=setting.zero_stage,
            offload=setting.offload,
            world_size=setting.world_size,
            is_accumulating=setting.accumulation > 1,
            num_buckets=2 if setting.overlap else 1,
            bucket_elements=setting.bucket_elements,
            on_cpu=trace.device == "cpu",
        )
    )
    terms = _find_worst(trace, setting, mode, states)
    passing = sum(terms[kind] for kind in KINDS[:-1])
    terms |= {
        "parameters": states.parameters + trace.buffer_bytes,
        "optimizer": states.optimizer,
        "communication": states.communication,
    }
    snapshot = {}
    if setting.saves_in_background and setting.zero_stage is None:
        # Of a checkpoint weights and moments, of the best model the weights: all in fp32.
        snapshot = {"snapshot": 8 * trace.num_parameters + 8 * trace.num_trained}
    if trace.device == "cpu":
        everything = _add(terms, states.cpu | {"process": PROCESS_BYTES["cpu"]} | snapshot)
        return _add_up({}, everything, trace.origin, ("process",))
    terms["margin"] = round(MARGIN_SHARE * passing)
    terms["context"] = CONTEXT_BYTES + (NCCL_BYTES if setting.world_size > 1 else 0)
    # Weights are in fp32 until they go to the card.
    building = {"process": PROCESS_BYTES["cuda"], "building": 4 * trace.num_parameters}
    building |= snapshot
    unknown = ("activations",) if setting.kernel == "flash" else ()
    return _add_up(terms, building | states.cpu, trace.origin, (*unknown, "margin", "context", "process"))


def _add_up(gpu: dict[str, int], cpu: dict[str, int], origin: str, assumed: tuple[str, ...]) -> Memory:
    largest = max(gpu or cpu, key=lambda name: (gpu or cpu)[name])
    return Memory(
        gpu_bytes=sum(gpu.values()),
        cpu_bytes=sum(cpu.values()),
        gpu_terms=gpu,
        cpu_terms=cpu,
        dominant=IN_WORDS[largest],
        origin=origin,
        assumed=assumed,
    )


def _find_worst(trace: Trace, setting: Setting, mode: str, states: States) -> dict[str, int]:
    """Bytes of each kind at the worst moment: of a micro-batch, or of the update after it."""
    num_rows, share = setting.micro_batch, 1.0
    way = name_way(mode, setting.checkpointing, is_chunked=False)
    chunked = name_way(mode, setting.checkpointing, is_chunked=True)
    chunk = setting.loss_chunk or 0
    # Of a pair there are no chunks.
    if 0 < chunk < trace.num_targets * num_rows and chunked in trace.lines:
        way, share = chunked, chunk * NUM_CHUNKS / (trace.num_targets * num_rows)
    worst: tuple[float, ...] = (0, 0, 0, states.update, states.all_gradients)
    for line in trace.lines[way]:
        found = [constant + per_row * num_rows for constant, per_row in line]
        found[2] *= share
        if states.gradients is not None:
            found[4] = states.gradients
        if sum(found) > sum(worst):
            worst = tuple(found)
    return dict(zip(KINDS, (round(size) for size in worst), strict=True))


def _add(terms: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    return {key: terms.get(key, 0) + others.get(key, 0) for key in (*terms, *others)}
