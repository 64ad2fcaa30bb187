"""The plan: recipe + profile + corpus -> every derived number, the command, and what cannot work.

Nothing heavy is imported: a plan answers in about a second, on any machine, but for the memory of a model
that has not been traced before.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from launch.batch import assume_batch
from launch.costing.ladder import USABLE_SHARE
from launch.costing.sizes import find_origin
from launch.costing.work import Work
from launch.forecast import Calibration, Length, forecast
from launch.hardware import Profile
from launch.options import Options
from launch.placement import GIB, Demand, Placement, place, way_of
from launch.recipe import Recipe
from launch.schedule import Cadence, RateSchedule
from launch.steps import Corpus, count_steps

SMALL_CORPUS_ROWS = 1_000_000
ATTENTION_KERNELS = ("eager", "fast", "flash")


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
    """`gpu_bytes`, `cpu_bytes`, their `terms`, `limit_bytes`, `dominant`, `origin` and which terms
    are `assumed`; None: not predicted."""
    peak_flops: float | None = None
    """Of one device, FLOP/s; None: not known, or not in this precision."""
    num_parameters: int | None = None
    """Derived from the model's sizes: matrices and embeddings, within 1 % of all."""
    sizes_origin: str = "unknown"
    """Where the sizes come from: the recipe, the model's folder, or a shipped table of public shapes."""
    flops_per_step: float | None = None
    """Model FLOPs, forward and backward, of all devices."""
    seconds: float | None = None
    """Of the run; `time` says where it comes from."""
    time: dict[str, Any] = {}
    """Seconds of a step and what they go to, of the evaluations and of the saves; `origin` and `mfu`."""
    scaling: dict[str, Any] = {}
    """Of several devices: rows and bytes of each in a step, expected efficiency."""
    ladder: list[dict[str, Any]] = []
    ladder_reason: str = ""
    output: str = ""
    command: list[str] = []
    environment: dict[str, str] = {}
    errors: list[str] = []
    warnings: list[str] = []

    def rate_schedule(self, recipe: Recipe) -> RateSchedule:
        """The learning rate as a function of the step."""
        assert self.num_steps is not None
        assert self.num_warmup_steps is not None
        training, extension = recipe.training, recipe.tokenizer.extend if recipe.tokenizer else None
        first_rate = extension.first_phase.learning_rate if extension and extension.first_phase else None
        return RateSchedule(
            training.learning_rate,
            self.num_steps,
            self.num_warmup_steps,
            training.schedule,
            self.num_first_phase_steps,
            training.learning_rate if first_rate is None else first_rate,
        )

    def cadence(self, every: int | Literal["epoch"]) -> Cadence:
        """When something that the recipe wants `every` so often is due."""
        return Cadence(every, self.global_batch, self.num_rows)


def make_plan(
    recipe: Recipe,
    profile: Profile,
    options: Options,
    corpus: Corpus,
    *,
    memory: Literal["traced", "cached", "none"] = "none",
    calibration: Calibration | None = None,
) -> Plan:
    """Resolve a recipe on a profile. Contradictions go into `errors`, all of them.

    Args:
        recipe: what to train.
        profile: on what.
        options: of the command line.
        corpus: how much there is to train on.
        memory: `traced` predicts it, in a child process of some 15 s where it is not in the cache; `cached`
            takes it from there or leaves it out.
        calibration: of this very setting, if there is one.
    """
    errors: list[str] = []
    warnings: list[str] = [corpus.problem] if corpus.problem else []
    devices = options.devices or profile.devices
    world_size = devices * options.nodes
    precision = _precision(recipe, profile, errors)
    attention = _attention(recipe, profile, options, errors)
    work = Work.of(recipe, corpus.tokens_per_row)
    placement = place(
        Demand(recipe, profile, options, work, precision, attention, world_size, "none" if errors else memory)
    )
    errors += placement.errors
    warnings += placement.warnings
    if recipe.model.family == "canine":
        _note_characters(recipe, corpus, warnings)
    if recipe.training.deterministic:
        warnings.append(_describe_determinism(recipe, profile))
    numbers = count_steps(recipe, corpus, errors)
    if work is not None:
        length = Length(
            numbers["num_steps"], numbers["num_evaluations"], numbers["num_saves"], corpus.num_rows
        )
        way = way_of(placement.layout, precision, world_size, options.nodes, placement.accumulation or 1)
        found = forecast(recipe, profile, work, way, length, calibration)
        warnings += found.notes
        numbers |= {"flops_per_step": work.flops(), "seconds": found.seconds}
        numbers |= {"num_parameters": work.num_parameters, "sizes_origin": find_origin(recipe.model.source)}
        numbers |= {"time": found.parts, "scaling": found.scaling}
    return Plan(
        recipe=recipe.name,
        profile=profile.name,
        devices=devices,
        nodes=options.nodes,
        world_size=world_size,
        global_batch=recipe.training.global_batch,
        micro_batch=placement.micro_batch,
        accumulation=placement.accumulation,
        evaluation_batch=assume_batch(recipe, profile),
        num_rows=corpus.num_rows,
        corpus_origin=corpus.origin,
        precision=precision,
        peak_flops=profile.gpu.peak_flops(precision) if profile.gpu else None,
        gradient_checkpointing=placement.layout.checkpointing,
        loss_chunk=placement.layout.loss_chunk,
        sharding=placement.layout.sharding,
        offload=placement.layout.offload,
        zero_stage=placement.layout.zero_stage,
        rendezvous=options.rendezvous,
        attention=attention,
        memory=_describe_memory(placement, profile),
        ladder=[rung.as_dict() for rung in placement.ladder],
        ladder_reason=placement.reason,
        errors=errors,
        warnings=warnings,
        **numbers,
    )


def _describe_memory(placement: Placement, profile: Profile) -> dict[str, Any] | None:
    if placement.memory is None:
        return None
    found = placement.memory
    return {
        "gpu_bytes": found.gpu_bytes,
        "cpu_bytes": found.cpu_bytes,
        "terms": {"gpu": found.gpu_terms, "cpu": found.cpu_terms},
        "limit_bytes": round(profile.gpu.memory_gb * USABLE_SHARE * GIB) if profile.gpu else None,
        "dominant": found.dominant,
        "origin": found.origin,
        "assumed": list(found.assumed),
    }


def _describe_determinism(recipe: Recipe, profile: Profile) -> str:
    text = (
        "training.deterministic: torch takes only operations that give the same bits each time, and the run"
    )
    text += " ends with torch's own error where there is none"
    if recipe.model.family == "deberta":
        text += "; attention kernel flash is left out, as its sums may come in any order"
    if profile.gpu is None:
        return f"{text}. A step takes about as long as without (2 % more at most, measured on small recipes)"
    return f"{text}. What it costs on a GPU was not measured by us"


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


def _precision(recipe: Recipe, profile: Profile, errors: list[str]) -> str:
    wish, gpu = recipe.precision, profile.gpu
    if wish == "auto":
        return "fp32" if gpu is None else "bf16" if gpu.has_bf16 else "fp16"
    if wish in ("fp16", "tf32") and gpu is None:
        errors.append(f"precision: {wish} wants a GPU; use auto or fp32 on a CPU")
    if wish in ("bf16", "tf32") and gpu is not None and not gpu.has_bf16:
        errors.append(
            f"precision: {wish} wants compute capability 8.0, {profile.name} has {gpu.compute_capability}; "
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
    is_fixed = recipe.training.deterministic
    if wanted == "flash" and is_fixed:
        errors.append(
            "--attention flash may not give the same bits twice (training.deterministic); take fast"
        )
    if wanted in (None, "auto"):
        return "auto" if may_flash and not is_fixed else "fast"
    return wanted
