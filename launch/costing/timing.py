"""Time of a run, predicted: products, optimizer, offload traffic, communication, data, evaluations and saves.

Derived from FLOPs and bandwidths at an assumed share of the peak, until `plan --calibrate` has measured it.
Nothing is taken to overlap but the preparation of data; a run may so be faster, not slower, than its parts.
"""

from dataclasses import dataclass
from typing import Literal

from launch.costing.work import Work
from launch.hardware import Gpu

ASSUMED_MFU = 0.35
ASSUMED_RANGE = (0.30, 0.40)
"""What well-fed encoders of this size reach; assumed, never measured by the plan."""
LAYER_SECONDS = 0.5e-3
"""Assumed: what starting the kernels of a layer takes, forward and backward (about 100 of 5 us), however few
rows there are."""
HOST_MEMORY_BANDWIDTH = 20e9
"""Assumed, bytes/s: what one or two channels of DDR4 give to the optimizer on the CPU."""
DISK_BANDWIDTH = 500e6
"""Assumed, bytes/s."""
FEED_TOKENS_PER_SECOND = 1.9e6
"""Measured on one core, the slower of words and names; a rank has at least one thread for it."""

# Bytes that an update of AdamW touches for a parameter: read and written on the card, and on the CPU.
_GPU_UPDATE_BYTES, _CPU_UPDATE_BYTES = 30, 28
_HALF, _FULL = 2, 4
# Weights and both moments in fp32.
_SAVED_BYTES = 12


@dataclass(frozen=True)
class Way:
    """How a step is run, as far as its time depends on it.

    Attributes:
        world_size, nodes: ranks in all, on so many machines.
        accumulation: micro-batches of a rank's step.
        precision: of the plan.
        checkpointing, is_chunked: what is computed again.
        zero_stage: None without DeepSpeed.
        offload: what lies in CPU memory.
    """

    world_size: int
    nodes: int
    accumulation: int
    precision: str
    checkpointing: bool = False
    is_chunked: bool = False
    zero_stage: int | None = None
    offload: Literal["optimizer", "parameters"] | None = None


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they go to; `seconds` is their sum, or the feed's if that is longer."""

    compute: float
    recompute: float
    optimizer: float
    offload: float
    communication: float
    feed: float

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(self.feed, self.busy)

    @property
    def busy(self) -> float:
        """Of a step whose data is there."""
        return self.compute + self.recompute + self.optimizer + self.offload + self.communication


def estimate_step(
    work: Work, way: Way, gpu: Gpu, *, network_bandwidth: float, mfu: float = ASSUMED_MFU
) -> StepTime | None:
    """Seconds of a step; None: the card's peak in this precision is not known."""
    peak = gpu.peak_flops(way.precision)
    if peak is None:
        return None
    speed = peak * mfu * way.world_size
    flops = work.flops()
    again = work.flops(checkpointing=True) - flops if way.checkpointing else 0.0
    again += work.head_flops() if way.is_chunked else 0.0
    least = LAYER_SECONDS * work.num_layers * way.accumulation
    return StepTime(
        compute=max(flops / speed, least),
        recompute=again / speed,
        optimizer=_update_seconds(work, way, gpu),
        offload=_offload_seconds(work, way, gpu),
        communication=_communication_seconds(work, way, gpu, network_bandwidth),
        feed=work.num_rows * work.num_slots / (FEED_TOKENS_PER_SECOND * way.world_size),
    )


def _update_seconds(work: Work, way: Way, gpu: Gpu) -> float:
    shards = way.world_size if way.zero_stage else 1
    if way.offload:
        # The ranks of a machine share the memory of its CPU.
        shards = way.nodes if way.zero_stage else 1
        return _CPU_UPDATE_BYTES * work.num_parameters / shards / HOST_MEMORY_BANDWIDTH
    if gpu.memory_bandwidth is None:
        return 0.0
    return _GPU_UPDATE_BYTES * work.num_parameters / shards / gpu.memory_bandwidth


def _offload_seconds(work: Work, way: Way, gpu: Gpu) -> float:
    """Copies between the card and the CPU's memory.

    DeepSpeed 0.19.8 moves the gradient that it accumulates to the card and back in every micro-batch but the
    last; parameters that lie in CPU memory are fetched for the forward and for the backward.
    """
    if way.offload is None or gpu.host_bandwidth is None:
        return 0.0
    width = _FULL if way.precision in ("fp32", "tf32") else _HALF
    share = width * work.num_parameters / way.world_size / gpu.host_bandwidth
    copies = 2 + 2 * (way.accumulation - 1)
    if way.offload == "parameters":
        copies += (3 if way.checkpointing else 2) * way.accumulation
    return copies * share


def communication_bytes(work: Work, way: Way) -> float:
    """Bytes that a rank sends in a step: a ring's share of the gradients and, under ZeRO, of the weights."""
    if way.world_size == 1:
        return 0.0
    ring = (way.world_size - 1) / way.world_size
    is_half = way.zero_stage is not None and way.precision in ("fp16", "bf16")
    size = (_HALF if is_half else _FULL) * work.num_parameters
    if way.zero_stage in (None, 0):
        return 2 * ring * size
    # Gradients are scattered once a micro-batch from stage 2 on; weights gathered once, or each time (3).
    scattered = way.accumulation if way.zero_stage >= 2 else 2
    gathered = (3 if way.checkpointing else 2) * way.accumulation if way.zero_stage == 3 else 1
    return ring * size * (scattered + gathered)


def _communication_seconds(work: Work, way: Way, gpu: Gpu, network_bandwidth: float) -> float:
    link = gpu.device_bandwidth or gpu.host_bandwidth
    if way.nodes > 1:
        # A ring that passes through a machine leaves it over one link, however many cards it has.
        link = network_bandwidth
    return communication_bytes(work, way) / link if link else 0.0


def estimate_evaluation(work: Work, num_rows: int, peak: float, world_size: int, mfu: float) -> float:
    """Seconds of one evaluation of so many rows: forward only."""
    per_row = work.flops(is_training=False) / work.num_rows
    return per_row * num_rows / (peak * mfu * world_size)


def estimate_save(work: Work) -> float:
    """Seconds of one checkpoint: weights and both moments in fp32."""
    return _SAVED_BYTES * work.num_parameters / DISK_BANDWIDTH


def describe_hours(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:,.1f} s"
