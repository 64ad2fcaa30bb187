"""Model states: weights, gradients and optimizer of a rank, on the card and in CPU memory.

For AdamW as `launch.optim` makes it, without DeepSpeed and under each ZeRO stage of DeepSpeed 0.19.8
(runtime/zero/stage_1_and_2.py, stage3.py), whose own estimators count less: neither buckets nor the
temporaries of a step.
"""

from dataclasses import dataclass

ADAM_BYTES = 8
MASTER_BYTES = 4
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`. It allocates the whole bucket, however small the model is."""
MAX_LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3 releases a weight only if it is needed again after so many others (`stage3_max_reuse_distance`), or
if more are there at once: below, the whole model stays gathered."""
_ROOTS = {False: 4, True: 8}
"""Bytes that AdamW takes for roots of moments, on a card and on a CPU, of what it updates at once: DeepSpeed
lays the weights of a rank end to end."""


@dataclass(frozen=True)
class Layout:
    """Numbers that decide the states.

    Attributes:
        num_parameters: all.
        num_trained: those with a gradient.
        num_largest: elements of the largest one.
        weight_bytes: 2 for a model in half precision, which DeepSpeed makes, else 4.
        zero_stage: None without DeepSpeed.
        offload: what lies in CPU memory.
        world_size: ranks.
        is_accumulating: a step has several micro-batches.
        num_buckets: of DeepSpeed at a time: two with `overlap_comm`.
        bucket_elements: `reduce_bucket_size`.
        on_cpu: there is no card, and torch updates one parameter after the other.
    """

    num_parameters: int
    num_trained: int
    num_largest: int
    weight_bytes: int
    zero_stage: int | None
    offload: str | None
    world_size: int
    is_accumulating: bool
    num_buckets: int
    bucket_elements: int
    on_cpu: bool


@dataclass(frozen=True)
class States:
    """Bytes of a rank.

    Attributes:
        parameters: weights, gathered ones included.
        optimizer: moments, and the master weights of DeepSpeed.
        communication: buckets of gradients, and what goes over to the CPU.
        gradients: between two micro-batches; None: they grow with the backward, and all are there at its end.
        all_gradients: at the update.
        update: temporaries of the update.
        cpu: in CPU memory.
    """

    parameters: int
    optimizer: int
    communication: int
    gradients: int | None
    all_gradients: int
    update: int
    cpu: dict[str, int]


def count_states(layout: Layout) -> States:
    """What a rank holds."""
    if layout.zero_stage is None:
        return _count_plain(layout)
    return _count_gathered(layout) if layout.zero_stage == 3 else _count_partitioned(layout)


def _count_plain(layout: Layout) -> States:
    trained, weight = layout.num_trained, layout.weight_bytes
    gradients = weight * trained
    # The norm is taken in fp64, of a copy; on a card AdamW takes the roots of all tensors at once.
    temporaries = 8 * layout.num_largest if layout.on_cpu else max(8 * layout.num_largest, 4 * trained)
    return States(
        parameters=weight * layout.num_parameters,
        optimizer=ADAM_BYTES * trained,
        # DDP copies gradients into buckets of its own.
        communication=gradients if layout.world_size > 1 else 0,
        gradients=gradients if layout.is_accumulating else None,
        all_gradients=gradients,
        update=temporaries,
        cpu={},
    )


def _count_partitioned(layout: Layout) -> States:
    """Stages 0 to 2: each rank has all weights."""
    weight, trained = layout.weight_bytes, layout.num_trained
    share = -(-trained // (layout.world_size if layout.zero_stage else 1))
    held = trained if layout.zero_stage in (0, 1) else share
    communication = layout.num_buckets * layout.bucket_elements * weight if layout.zero_stage else 0
    if layout.offload:
        # A gradient is in its bucket until it is in CPU memory.
        return States(
            parameters=weight * layout.num_parameters,
            optimizer=0,
            communication=communication + weight * layout.num_largest,
            gradients=0,
            all_gradients=0,
            # The norm of each gradient is taken on the card, in fp64.
            update=(weight + 8) * layout.num_largest,
            cpu=_count_offloaded(layout, share),
        )
    return States(
        parameters=weight * layout.num_parameters,
        optimizer=(MASTER_BYTES + ADAM_BYTES) * share,
        communication=communication,
        # Stage 2 takes the sum of a micro-batch apart and then adds it to the one before.
        gradients=weight * held * (2 if layout.is_accumulating and layout.zero_stage == 2 else 1),
        all_gradients=weight * held,
        # Gradients flat and in fp32, then the root of AdamW.
        update=4 * share + _ROOTS[layout.on_cpu] * share,
        cpu={},
    )


def _count_gathered(layout: Layout) -> States:
    """Stage 3: each rank has a part of the weights, and gathers those that it needs."""
    weight, trained = layout.weight_bytes, layout.num_trained
    share = -(-trained // layout.world_size)
    part = weight * -(-layout.num_parameters // layout.world_size)
    gathered = weight * min(layout.num_parameters, MAX_LIVE_ELEMENTS)
    offloads_weights = layout.offload == "parameters"
    # A single rank need not gather what it has.
    is_whole = layout.world_size == 1 and not offloads_weights
    return States(
        parameters=gathered + (0 if is_whole or offloads_weights else part),
        optimizer=0 if layout.offload else (MASTER_BYTES + ADAM_BYTES) * share,
        communication=layout.bucket_elements * weight,
        gradients=0 if layout.offload else weight * share,
        all_gradients=0 if layout.offload else weight * share,
        update=0 if layout.offload else (4 + _ROOTS[layout.on_cpu]) * share,
        cpu=(_count_offloaded(layout, share) if layout.offload else {})
        | ({"parameters": _pin(part)} if offloads_weights else {}),
    )


def _count_offloaded(layout: Layout, share: int) -> dict[str, int]:
    """Master weights and gradients in fp32, both pinned, with the moments, and what is copied between."""
    weight = layout.weight_bytes
    buffers = _pin(weight * share) + _pin(weight * layout.num_largest)
    return {
        "optimizer": _pin(MASTER_BYTES * share) + ADAM_BYTES * share,
        "gradients": _pin(4 * share) + (weight * share if layout.is_accumulating else 0),
        "buffers": buffers,
    }


def _pin(num_bytes: int) -> int:
    """Pinned memory comes in powers of two."""
    return 1 << (num_bytes - 1).bit_length() if num_bytes else 0
