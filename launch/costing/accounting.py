"""Accounting: the FLOPs of the steps that a run takes.

Model FLOPs throughout: those of the reference kernel, head and last layer as they run, nothing recomputed. A
share of the peak (MFU) that counts more than that could be raised by wasting work.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.costing.sizes import DEFAULTS
from launch.costing.work import count_parts

if TYPE_CHECKING:
    from torch import Tensor

_NOT_A_TARGET = -100


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
            counted = count_parts(self.sizes, num_rows, num_slots, num_targets, is_sparse=self.is_sparse)
            total += sum(flops.model for flops in counted)
        return total
