"""Accounting: the FLOPs of steps, planned and run, and the time they take on a card whose peak is known.

Model FLOPs throughout: those of the reference kernel, head and last layer as they run, nothing recomputed. A
share of the peak (MFU) that counts more than that could be raised by wasting work.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.costing.flops import count_flops
from launch.costing.sizes import DEFAULTS, find_sizes
from launch.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

ASSUMED_MFU = 0.35
ASSUMED_RANGE = (0.30, 0.40)
"""What well-fed encoders of this size reach; assumed, never measured by the plan."""

_NOT_A_TARGET = -100
_MOLECULE = 4
_NUM_SPECIAL = 2


@dataclass(frozen=True)
class StepCounter:
    """Counts the model FLOPs of the batches that a model runs.

    Attributes:
        sizes: configuration of the masked language model, then that of a discriminator, if there is one.
        is_sparse: whether the last layer of the first runs at the targets only.
    """

    sizes: tuple[dict[str, Any], ...]
    is_sparse: bool

    @classmethod
    def of(cls, parts: Iterable[Any]) -> "StepCounter | None":
        """For a model, or the two of a pair; None: nobody knows what such a model costs."""
        parts = list(parts)
        sizes = tuple(part.config.to_dict() for part in parts)
        if any(values.get("model_type") not in DEFAULTS for values in sizes):
            return None
        return cls(sizes, bool(getattr(parts[0], "sparse_last_layer", False)))

    def count(self, micro_batches: Iterable[Mapping[str, "Tensor"]]) -> int:
        """Model FLOPs, forward and backward, of a rank's part of a step."""
        total = 0
        for batch in micro_batches:
            num_rows, num_slots = batch["input_ids"].shape
            num_targets = int((batch["labels"] != _NOT_A_TARGET).sum())
            total += count_parts(self.sizes, num_rows, num_slots, num_targets, is_sparse=self.is_sparse)
        return total


def count_parts(
    sizes: tuple[dict[str, Any], ...], num_rows: int, num_slots: int, num_targets: int, *, is_sparse: bool
) -> int:
    """Model FLOPs of a masked language model and, where there is a second one, of its discriminator."""
    shape: dict[str, Any] = {"num_rows": num_rows, "num_slots": num_slots}
    total = count_flops(sizes[0], num_targets=num_targets, sparse_last_layer=is_sparse, **shape).model
    for values in sizes[1:]:
        # Its head has one output and judges every slot.
        judge = {**values, "vocab_size": 1, "legacy": False}
        total += count_flops(judge, num_targets=num_rows * num_slots, **shape).model
    return total


def plan_flops(recipe: Recipe, tokens_per_row: float | None) -> float | None:
    """Model FLOPs of a step of a recipe, before anything is built; None: the model's sizes are not known.

    Rows of words count as full; names as long as `tokens_per_row` says, else as the longest.
    """
    model, tokenizer, objective = recipe.model, recipe.tokenizer, recipe.objective
    num_pieces = tokenizer.vocab_size if tokenizer else None
    sizes = find_sizes(model.family, model.source, model.config, num_pieces)
    if sizes is None:
        return None
    num_rows, num_slots, num_used = (
        recipe.training.global_batch,
        recipe.data.row_length,
        recipe.data.row_length,
    )
    if sizes["model_type"] == "canine":
        if tokens_per_row is not None:
            num_used = min(num_used, round(tokens_per_row) + _NUM_SPECIAL)
        # As row_slots in modeling/canine.py: two slots ahead, and a molecule that is dropped.
        num_slots = ((num_used + 1) // _MOLECULE + 2) * _MOLECULE
    num_targets = round(objective.masking.rate * num_rows * num_used)
    parts = (sizes,)
    if objective.kind == "rtd":
        generator = objective.generator
        num_layers = sizes.get("num_hidden_layers", DEFAULTS[sizes["model_type"]]["num_hidden_layers"])
        few = generator.num_hidden_layers or max(1, round((generator.share or 0.5) * num_layers))
        parts = ({**sizes, "num_hidden_layers": few}, sizes)
    is_sparse = model.family in ("deberta", "canine")
    return float(count_parts(parts, num_rows, num_slots, num_targets, is_sparse=is_sparse))


def estimate_seconds(
    flops: float, peak_flops: float, num_devices: int, *, is_bound: bool = False
) -> tuple[float, str]:
    """Seconds that so many FLOPs take at the assumed share of the peak, and a line that says so.

    `is_bound`: the FLOPs are those of rows that are all as long as the longest.
    """
    whole = flops / (peak_flops * num_devices)
    slow, fast = (whole / share for share in ASSUMED_RANGE)
    text = (
        f"the time is assumed, not measured: {ASSUMED_MFU:.0%} of {peak_flops / 1e12:,.0f} TFLOP/s a card; "
        f"{_hours(fast)} at {ASSUMED_RANGE[1]:.0%}, {_hours(slow)} at {ASSUMED_RANGE[0]:.0%}, without "
        "evaluations and saves"
    )
    if is_bound:
        text += "; every row counted as the longest, as data.expected_tokens is not given"
    return whole / ASSUMED_MFU, text


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
