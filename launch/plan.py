"""The plan: recipe + profile + corpus -> every derived number, the command, and what cannot work.

Nothing runs and nothing heavy is imported: a plan answers in about a second, on any machine.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from launch.costing.accounting import estimate_seconds, plan_flops
from launch.hardware import Profile
from launch.recipe import Recipe
from launch.schedule import Cadence, RateSchedule
from launch.sharding import NONE, Sharding, ShardingError, read_sharding
from launch.steps import Corpus, count_steps

SMALL_CORPUS_ROWS = 1_000_000
ASSUMED_TOKENS, ASSUMED_GB = 4096, 11
"""Tokens at a time that a card of so many GiB takes, where its memory is not looked at."""
MIN_CHARACTER_CUTS = 2
ATTENTION_KERNELS = ("eager", "fast", "flash")


@dataclass(frozen=True)
class Options:
    """What the command line says about hardware and placement; None: the plan decides."""

    devices: int | None = None
    nodes: int = 1
    micro_batch: int | None = None
    checkpointing: Literal["on", "off"] | None = None
    attention: str | None = None
    prefer: Literal["plain", "offload"] | None = None
    sharding: str | None = None
    """A file of ds_configs by its name, a file of one's own, or `none`."""
    loss_chunk: int | Literal["off"] | None = None
    """Targets whose logits exist at a time."""
    rendezvous: Literal["static", "c10d"] = "static"
    """How several machines find each other."""


class Plan(BaseModel):
    """A resolved, checked job. `errors` is empty in a plan that can run."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    profile: str
    devices: int
    nodes: int
    world_size: int
    global_batch: int
    micro_batch: int | None
    accumulation: int | None
    evaluation_batch: int
    num_steps: int | None
    num_epochs: float | None
    num_warmup_steps: int | None
    num_evaluations: int | None
    num_saves: int | None
    num_tokens: int | None
    num_rows: int | None
    corpus_origin: str
    precision: str
    gradient_checkpointing: bool
    loss_chunk: int | None
    """Targets whose logits exist at a time; None: all of a micro-batch."""
    sharding: str
    """The file of ds_configs, or `none`."""
    offload: str | None
    zero_stage: int | None
    attention: str
    rendezvous: str = "static"
    num_first_phase_steps: int = 0
    """The first steps, in which only the rows of new pieces are trained."""
    memory: dict[str, Any] | None = None
    peak_flops: float | None = None
    """Of one device, FLOP/s; None: not known, or not in this precision."""
    flops_per_step: float | None = None
    """Model FLOPs, forward and backward, of all devices."""
    seconds: float | None = None
    """At an assumed share of the peak; `warnings` say which."""
    ladder: list[dict[str, Any]] = []
    output: str = ""
    command: list[str] = []
    environment: dict[str, str] = {}
    errors: list[str] = []
    warnings: list[str] = []

    def rate_schedule(self, recipe: Recipe) -> RateSchedule:
        """The learning rate as a function of the step."""
        assert self.num_steps is not None
        assert self.num_warmup_steps is not None
        return RateSchedule(
            recipe.training.learning_rate, self.num_steps, self.num_warmup_steps, recipe.training.schedule
        )

    def cadence(self, every: int | Literal["epoch"]) -> Cadence:
        """When something that the recipe wants `every` so often is due."""
        return Cadence(every, self.global_batch, self.num_rows)


def make_plan(recipe: Recipe, profile: Profile, options: Options, corpus: Corpus) -> Plan:
    """Resolve a recipe on a profile. Contradictions go into `errors`, all of them."""
    errors: list[str] = []
    warnings: list[str] = [corpus.problem] if corpus.problem else []
    devices = options.devices or profile.devices
    world_size = devices * options.nodes
    sharding = _find_sharding(profile, options, errors)
    micro_batch, accumulation = _split_batch(recipe, profile, options, world_size, errors)
    if profile.gpu and options.micro_batch is None:
        warnings.append(
            "the micro-batch is assumed from the card's memory, not measured; --micro-batch sets it"
        )
    if recipe.model.family == "canine":
        _note_characters(recipe, corpus, warnings)
    numbers = count_steps(recipe, corpus, errors)
    precision = _precision(recipe, profile, errors)
    peak_flops = profile.gpu.peak_flops(precision) if profile.gpu else None
    numbers |= _cost(recipe, corpus, numbers["num_steps"], (peak_flops, world_size), warnings)
    return Plan(
        recipe=recipe.name,
        profile=profile.name,
        devices=devices,
        nodes=options.nodes,
        world_size=world_size,
        global_batch=recipe.training.global_batch,
        micro_batch=micro_batch,
        accumulation=accumulation,
        evaluation_batch=_largest_batch(recipe, profile),
        num_rows=corpus.num_rows,
        corpus_origin=corpus.origin,
        precision=precision,
        peak_flops=peak_flops,
        gradient_checkpointing=options.checkpointing == "on",
        loss_chunk=options.loss_chunk if isinstance(options.loss_chunk, int) else None,
        sharding=sharding.name,
        offload=sharding.offload,
        zero_stage=sharding.zero_stage,
        rendezvous=options.rendezvous,
        attention=_attention(recipe, profile, options, errors),
        errors=errors,
        warnings=warnings,
        **numbers,
    )


def _find_sharding(profile: Profile, options: Options, errors: list[str]) -> Sharding:
    name = options.sharding or ("zero2-offload" if options.prefer == "offload" else profile.sharding) or NONE
    try:
        sharding = read_sharding(name)
    except ShardingError as error:
        errors.append(f"--sharding: {error}")
        return read_sharding(NONE)
    errors += sharding.find_errors()
    return sharding


def _note_characters(recipe: Recipe, corpus: Corpus, warnings: list[str]) -> None:
    if 0 < (corpus.num_rows or 0) < SMALL_CORPUS_ROWS:
        warnings.append(
            f"{corpus.num_rows:,} names are few for a character model: under a million it tends to learn "
            "them by heart; watch the evaluation, or add sources"
        )
    said = f"{recipe.name} {recipe.description}"
    if "canine-c" in recipe.model.source.lower() and re.search(r"canine[-_ ]?s\b", said, re.IGNORECASE):
        warnings.append(
            f"model.source {recipe.model.source} is CANINE-C (trained on characters), the recipe calls it "
            "CANINE-S (trained on subwords): correct the name or description, or take google/canine-s"
        )


def _split_batch(
    recipe: Recipe, profile: Profile, options: Options, world_size: int, errors: list[str]
) -> tuple[int | None, int | None]:
    """The micro-batch (rows on one device at a time) and how many of them make a step."""
    global_batch = recipe.training.global_batch
    if global_batch % world_size:
        near = _near_multiples(global_batch, world_size)
        errors.append(
            f"training.global_batch {global_batch:,} is not divisible by {world_size} devices; set it to "
            f"{near}, or use another number of devices"
        )
        return None, None
    rows = global_batch // world_size
    if options.micro_batch is not None:
        if options.micro_batch < 1 or rows % options.micro_batch:
            divisors = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
            errors.append(
                f"--micro-batch {options.micro_batch} does not divide the {rows:,} rows of a device "
                f"(global batch {global_batch:,} / {world_size}); possible: {divisors}"
            )
            return None, None
        return options.micro_batch, rows // options.micro_batch
    most = min(_largest_batch(recipe, profile), rows)
    if recipe.model.family == "canine" and rows > 1:
        # Names are cut by length: in one micro-batch all are as long as the longest, 1.8 times the slots that
        # they need; in two 1.2 times, in four 1.04 (1.5 M registered names, 256 a step).
        most = min(most, -(-rows // MIN_CHARACTER_CUTS))
    micro_batch = max(n for n in range(1, most + 1) if rows % n == 0)
    return micro_batch, rows // micro_batch


def _largest_batch(recipe: Recipe, profile: Profile) -> int:
    """Rows that a device takes at once. Evaluation uses it as it is, so that ranks do not change its sums."""
    memory_gb = profile.gpu.memory_gb if profile.gpu else ASSUMED_GB
    return profile.micro_batch or max(
        1, round(memory_gb / ASSUMED_GB * ASSUMED_TOKENS) // recipe.data.row_length
    )


def _near_multiples(number: int, factor: int) -> str:
    below, above = number // factor * factor, (number // factor + 1) * factor
    return f"{below:,} or {above:,}" if below else f"{above:,}"


def _cost(
    recipe: Recipe,
    corpus: Corpus,
    num_steps: int | None,
    hardware: tuple[float | None, int],
    warnings: list[str],
) -> dict[str, float | None]:
    """FLOPs of a step and, on a card (its peak, how many) that is known, an assumed time for the run."""
    per_row = corpus.num_tokens / corpus.num_rows if corpus.num_tokens and corpus.num_rows else None
    flops, seconds = plan_flops(recipe, per_row), None
    peak_flops, world_size = hardware
    if flops is not None and peak_flops is not None and num_steps is not None:
        is_bound = per_row is None and recipe.model.family == "canine"
        seconds, origin = estimate_seconds(flops * num_steps, peak_flops, world_size, is_bound=is_bound)
        warnings.append(origin)
    return {"flops_per_step": flops, "seconds": seconds}


def _precision(recipe: Recipe, profile: Profile, errors: list[str]) -> str:
    wish, gpu = recipe.precision, profile.gpu
    if wish == "auto":
        return "fp32" if gpu is None else "bf16" if gpu.has_bf16 else "fp16"
    if wish == "fp16" and gpu is None:
        errors.append("precision: fp16 wants a GPU; use auto or fp32 on a CPU")
    if wish == "bf16" and gpu is not None and not gpu.has_bf16:
        errors.append(
            f"precision: bf16 wants compute capability 8.0, {profile.name} has {gpu.compute_capability}; "
            "use auto or fp16"
        )
    return wish


def _attention(recipe: Recipe, profile: Profile, options: Options, errors: list[str]) -> str:
    """The attention kernel; `auto` where the trainer chooses once it sees what is installed."""
    wanted, gpu = options.attention, profile.gpu
    if wanted not in (None, "auto", *ATTENTION_KERNELS):
        errors.append(f"--attention {wanted}: no such kernel; known: auto, {', '.join(ATTENTION_KERNELS)}")
    if recipe.model.family != "deberta":
        if wanted in ("fast", "flash"):
            errors.append(f"--attention {wanted} is for deberta; leave it out for {recipe.model.family}")
        return "eager"
    may_flash = gpu is not None and gpu.has_bf16
    if wanted == "flash" and not may_flash:
        found = f"{profile.name} has {gpu.compute_capability}" if gpu else f"{profile.name} has no GPU"
        errors.append(f"--attention flash wants compute capability 8.0, {found}; use auto or fast")
    if wanted in (None, "auto"):
        return "auto" if may_flash else "fast"
    return wanted
