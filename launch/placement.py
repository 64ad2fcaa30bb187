"""Where a step lies: its micro-batch and layout on the hardware, with the memory that this takes."""

import importlib.util
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from launch.batch import assume_batch, check_micro_batch, count_rows, list_micro_batches
from launch.costing.ladder import (
    USABLE_SHARE,
    Ladder,
    Layout,
    Rung,
    climb,
    find_change,
    list_layouts,
)
from launch.costing.memory import (
    Memory,
    Setting,
    Shape,
    Trace,
    TraceError,
    find_trace,
    predict_memory,
    trace_model,
)
from launch.costing.timing import Way, estimate_step
from launch.costing.work import Work
from launch.hardware import Profile
from launch.options import Options
from launch.recipe import Recipe
from launch.sharding import NONE, ShardingError, read_sharding

OFFLOADS = ("zero2-offload", "zero3-offload-parameters")
GIB = 2**30


@dataclass(frozen=True)
class Demand:
    """What a placement is asked for.

    Attributes:
        work: of a step; None: the model's sizes are not known.
        precision: of the plan.
        attention: the kernel, or `auto`.
        memory: whether traces may be made, only taken from the cache, or not used at all.
    """

    recipe: Recipe
    profile: Profile
    options: Options
    work: Work | None
    precision: str
    attention: str
    world_size: int
    memory: Literal["traced", "cached", "none"]


@dataclass
class Placement:
    """A settled placement; `errors` are why it cannot be.

    Attributes:
        memory: of the rank with the most, at its worst moment; None: not predicted.
        ladder: the rungs that were tried.
        reason: why the ladder ended there.
    """

    layout: Layout
    micro_batch: int | None = None
    accumulation: int | None = None
    memory: Memory | None = None
    ladder: tuple[Rung, ...] = ()
    reason: str = ""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def place(asked: Demand) -> Placement:
    """Settle micro-batch and layout: as the options say, else by the ladder, else by rule of thumb."""
    recipe, options = asked.recipe, asked.options
    errors: list[str] = []
    shardings = _list_shardings(asked, errors)
    switches = None if options.checkpointing is None else options.checkpointing == "on"
    layouts = _list_layouts(asked, shardings, switches, errors)
    placement = Placement(layouts[0], errors=errors)
    num_rows = count_rows(recipe, asked.world_size, errors)
    if num_rows is not None:
        _settle(asked, placement, layouts, num_rows)
    _check_tools(asked, placement)
    return placement


def _settle(asked: Demand, placement: Placement, layouts: list[Layout], num_rows: int) -> None:
    recipe, profile, options, errors = asked.recipe, asked.profile, asked.options, placement.errors
    candidates = list_micro_batches(recipe, num_rows)
    if options.micro_batch is not None:
        wanted = check_micro_batch(recipe, options.micro_batch, num_rows, errors)
        if wanted is None:
            return
        candidates = [wanted]
    trace = _find_trace(asked, placement)
    if trace is None:
        most = options.micro_batch or min(assume_batch(recipe, profile), candidates[0])
        placement.micro_batch = next(n for n in candidates if n <= most)
        if profile.gpu and options.micro_batch is None:
            placement.warnings.append(
                "the micro-batch is assumed from the card's memory, not predicted; --micro-batch sets it"
            )
    else:
        _place_by_memory(asked, placement, layouts, candidates, (trace, num_rows))
    placement.accumulation = num_rows // placement.micro_batch if placement.micro_batch else None


def _list_shardings(asked: Demand, errors: list[str]) -> list[str]:
    """The shardings that come into question, the cheapest first; those that were named, alone."""
    named = asked.options.sharding or (None if asked.options.prefer else asked.profile.sharding)
    if named is not None:
        try:
            errors += read_sharding(named).find_errors()
        except ShardingError as error:
            errors.append(f"--sharding: {error}")
            return [NONE]
        return [named]
    if asked.options.prefer == "offload":
        return list(OFFLOADS)
    if asked.profile.gpu is None:
        return [NONE]
    return [NONE, *(["zero2"] if asked.world_size > 1 else []), *OFFLOADS]


def _list_layouts(
    asked: Demand, shardings: Sequence[str], checkpointing: bool | None, errors: list[str]
) -> list[Layout]:
    """The layouts to try; the loss is not cut where that cannot be."""
    wanted = asked.options.loss_chunk
    if asked.recipe.objective.kind == "rtd":
        if wanted not in (None, "off"):
            errors.append(
                f"--loss-chunk {wanted}: replaced-token detection samples from all logits; leave it out"
            )
        return list_layouts(shardings, checkpointing, "off")
    layouts = list_layouts(shardings, checkpointing, wanted)
    if asked.world_size == 1:
        return layouts
    # Ranks would cut their targets into unequal numbers of chunks, each of which gathers weights.
    whole = [replace(one, loss_chunk=None) if one.zero_stage == 3 else one for one in layouts]
    if wanted not in (None, "off") and whole != layouts:
        errors.append(
            f"--loss-chunk {wanted}: ZeRO-3 on several devices gathers weights for each chunk, and each has "
            "another number of them; leave it out, or take zero2"
        )
    return list(dict.fromkeys(whole))


def _find_trace(asked: Demand, placement: Placement) -> Trace | None:
    if asked.memory == "none" or asked.work is None:
        return None
    work = asked.work.longest(asked.recipe.data.row_length)
    rate = asked.recipe.model.dropout
    dropout = {} if rate is None else {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    masked, *judges = ({**sizes, **dropout} for sizes in work.parts)
    shape = Shape(
        sizes=masked,
        row_length=work.num_slots,
        num_targets=math.ceil(work.num_targets / work.num_rows),
        discriminator=judges[0] if judges else None,
        device="cuda" if asked.profile.gpu else "cpu",
    )
    try:
        if asked.memory == "cached":
            return find_trace(shape, asked.precision, _kernel(asked))
        return trace_model(shape, asked.precision, _kernel(asked))
    except TraceError as error:
        placement.warnings.append(f"the memory cannot be predicted: {error}")
        return None


def _kernel(asked: Demand) -> Any:
    return "fast" if asked.attention == "auto" else asked.attention


def _place_by_memory(
    asked: Demand,
    placement: Placement,
    layouts: list[Layout],
    candidates: Sequence[int],
    known: tuple[Trace, int],
) -> None:
    measure = _measure_with(asked, *known)
    ladder = climb(layouts, candidates, measure) if asked.profile.gpu else _take_first(
        measure(layouts[0], _assume(asked, candidates))
    )  # fmt: skip
    rung = ladder.taken or ladder.rungs[0]
    placement.ladder, placement.reason = ladder.rungs, ladder.reason
    placement.layout, placement.micro_batch = rung.layout, rung.micro_batch
    placement.memory = predict_memory(known[0], _setting(asked, rung.layout, rung.micro_batch, known[1]))
    if ladder.taken is None and asked.profile.gpu:
        usable = asked.profile.gpu.memory_gb * USABLE_SHARE
        smaller = list_micro_batches(asked.recipe, known[1])
        least = min(ladder.rungs, key=lambda tried: tried.gpu_bytes)
        change = find_change(rung.layout, rung.micro_batch, smaller, measure)
        placement.errors.append(
            f"{rung.layout.describe()} with {rung.micro_batch:,} rows at a time wants "
            f"{rung.gpu_bytes / GIB:.1f} GiB (most of it {rung.dominant}), {asked.profile.name} has "
            f"{usable:.1f} to give; the least that was tried wants {least.gpu_bytes / GIB:.1f} "
            f"({least.layout.describe()}). The smallest change that fits: {change}"
        )


def _assume(asked: Demand, candidates: Sequence[int]) -> int:
    most = asked.options.micro_batch or assume_batch(asked.recipe, asked.profile)
    return next((number for number in candidates if number <= most), candidates[-1])


def _take_first(rung: Rung) -> Ladder:
    return Ladder((rung,), rung, "a CPU profile states its micro-batch")


def _setting(asked: Demand, layout: Layout, micro_batch: int, num_rows: int) -> Setting:
    sharding = read_sharding(layout.sharding)
    values: dict[str, Any] = {"precision": asked.precision, "overlap": sharding.overlaps}
    if sharding.bucket_elements is not None:
        values["bucket_elements"] = sharding.bucket_elements
    return Setting(
        micro_batch=micro_batch,
        kernel=_kernel(asked),
        checkpointing=layout.checkpointing,
        loss_chunk=layout.loss_chunk,
        zero_stage=sharding.zero_stage,
        offload=sharding.offload,
        world_size=asked.world_size,
        accumulation=num_rows // micro_batch,
        saves_in_background=asked.recipe.checkpoint.in_background,
        **values,
    )


def _measure_with(asked: Demand, trace: Trace, num_rows: int) -> Callable[[Layout, int], Rung]:
    gpu = asked.profile.gpu
    usable = gpu.memory_gb * USABLE_SHARE * GIB if gpu else math.inf

    def measure(layout: Layout, micro_batch: int) -> Rung:
        memory = predict_memory(trace, _setting(asked, layout, micro_batch, num_rows))
        return Rung(
            layout=layout,
            micro_batch=micro_batch,
            fits=memory.gpu_bytes <= usable,
            gpu_bytes=memory.gpu_bytes,
            cpu_bytes=memory.cpu_bytes,
            dominant=memory.dominant,
            step_seconds=_step_seconds(asked, layout, num_rows // micro_batch),
        )

    return measure


def _step_seconds(asked: Demand, layout: Layout, accumulation: int) -> float | None:
    gpu = asked.profile.gpu
    if gpu is None or asked.work is None:
        return None
    way = way_of(layout, asked.precision, asked.world_size, asked.options.nodes, accumulation)
    found = estimate_step(asked.work, way, gpu, network_bandwidth=asked.profile.network_bandwidth)
    return found.seconds if found else None


def way_of(layout: Layout, precision: str, world_size: int, nodes: int, accumulation: int) -> Way:
    """A layout as far as its time depends on it."""
    return Way(
        world_size=world_size,
        nodes=nodes,
        accumulation=accumulation,
        precision=precision,
        checkpointing=layout.checkpointing,
        is_chunked=layout.loss_chunk is not None,
        zero_stage=layout.zero_stage,
        offload=layout.offload,
    )


def _check_tools(asked: Demand, placement: Placement) -> None:
    """On a CPU DeepSpeed compiles what its ranks exchange gradients with."""
    if asked.profile.gpu is not None or placement.layout.zero_stage is None:
        return
    if shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None:
        placement.errors.append(
            f"{placement.layout.sharding} on a CPU compiles what its ranks exchange with at first use; that "
            "wants ninja, which is not here: pip install ninja"
        )
