"""Losses of a masked language model, taken at its target positions only.

Shapes: B rows, L slots of a row, D hidden size, K targets of the batch in row-major order, V classes of the
head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers.utils.generic import ModelOutput

IGNORED_LABEL = -100
"""The one label that is no target; every other value, 0 included, is a target."""


@dataclass
class MaskedLMOutput(ModelOutput):
    """What a masked language model gives for a batch.

    Losses and counts are None without labels. Positions 0 and 1 of the tuple form are those of Hugging Face.
    """

    loss: Tensor | None = None
    """Mean over the targets of this batch; 0 where it has none."""
    logits: Tensor | None = None
    """[B, L, V] without labels. With labels [K, V] in eval mode and None in training: the mixed-precision
    wrapper of Accelerate would copy them to fp32 (0.3 GB at 614 targets of 128,100 pieces) for nobody."""
    loss_sum: Tensor | None = None
    """Sum over the targets, fp32 (fp64 for a model in fp64)."""
    num_targets: Tensor | None = None
    num_correct: Tensor | None = None
    """Targets whose most likely class is the label; carries no gradient."""
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Targets(NamedTuple):
    """Targets of a batch, in row-major order."""

    slots: Tensor
    """[K] where they are in the rows laid end to end."""
    labels: Tensor
    """[K]"""


def find_targets(labels_BL: Tensor) -> Targets:
    """Every slot whose label is not `IGNORED_LABEL`."""
    labels_N = labels_BL.reshape(-1)
    slots_K = (labels_N != IGNORED_LABEL).nonzero().squeeze(1)
    return Targets(slots_K, labels_N.index_select(0, slots_K).long())


def score_targets(
    hidden_BLD: Tensor, labels_BL: Tensor, decode: Callable[[Tensor], Tensor], *, keep_logits: bool
) -> MaskedLMOutput:
    """Loss sum, number of targets and hits of a batch whose head is `decode`, run on [K, D] only.

    A batch without targets gives a loss of 0 that still reaches every parameter, with gradients of 0: a rank
    that drew no target must take part in the exchange of gradients.

    Raises:
        ValueError: the labels have another shape than the rows.
    """
    check_labels(labels_BL, hidden_BLD.shape[:2])
    targets = find_targets(labels_BL)
    hidden_KD = hidden_BLD.flatten(0, 1).index_select(0, targets.slots)
    return score_hidden(hidden_KD, targets.labels, decode, keep_logits=keep_logits)


def score_hidden(
    hidden_KD: Tensor, labels_K: Tensor, decode: Callable[[Tensor], Tensor], *, keep_logits: bool
) -> MaskedLMOutput:
    """The same for hidden states that are those of the targets alone."""
    logits_KV = decode(hidden_KD)
    scores_KV = logits_KV if logits_KV.dtype == torch.float64 else logits_KV.float()
    loss_sum = functional.cross_entropy(scores_KV, labels_K, reduction="sum")
    # Counted from the shape, which torch.compile takes for a number that it does not know yet.
    num_targets = torch.full((), labels_K.shape[0], dtype=torch.long, device=labels_K.device)
    return MaskedLMOutput(
        loss=loss_sum / num_targets.clamp(min=1),
        logits=logits_KV if keep_logits else None,
        loss_sum=loss_sum,
        num_targets=num_targets,
        num_correct=(logits_KV.detach().argmax(-1) == labels_K).sum(),
    )


def check_labels(labels_BL: Tensor, shape: torch.Size) -> None:
    """Refuse labels of another shape than the rows [B, L].

    Raises:
        ValueError: they differ.
    """
    if labels_BL.shape != shape:
        raise ValueError(
            f"labels have shape {list(labels_BL.shape)} and the rows {list(shape)}: "
            f"give one label a slot, {IGNORED_LABEL} where there is no target"
        )
