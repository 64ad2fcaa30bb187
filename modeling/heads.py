"""Losses of a masked language model, taken at its target positions only.

Shapes: B rows, L slots of a row, D hidden size, K targets of the batch in row-major order, V classes of the
head.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


def score_targets(
    hidden_BLD: Tensor, labels_BL: Tensor, decode: Callable[[Tensor], Tensor], *, keep_logits: bool
) -> MaskedLMOutput:
    """Loss sum, number of targets and hits of a batch whose head is `decode`, run on [K, D] only.

    A batch without targets gives a loss of 0 that still reaches every parameter, with gradients of 0: a rank
    that drew no target must take part in the exchange of gradients.

    Raises:
        ValueError: the labels have another shape than the rows.
    """
    if labels_BL.shape != hidden_BLD.shape[:2]:
        raise ValueError(
            f"labels have shape {list(labels_BL.shape)} and the rows {list(hidden_BLD.shape[:2])}: "
            f"give one label a slot, {IGNORED_LABEL} where there is no target"
        )
    labels_N = labels_BL.reshape(-1)
    positions_K = (labels_N != IGNORED_LABEL).nonzero().squeeze(1)
    targets_K = labels_N[positions_K].long()
    logits_KV = decode(hidden_BLD.flatten(0, 1).index_select(0, positions_K))
    scores_KV = logits_KV if logits_KV.dtype == torch.float64 else logits_KV.float()
    loss_sum = functional.cross_entropy(scores_KV, targets_K, reduction="sum")
    num_targets = positions_K.shape[0]
    return MaskedLMOutput(
        loss=loss_sum / max(num_targets, 1),
        logits=logits_KV if keep_logits else None,
        loss_sum=loss_sum,
        num_targets=torch.full((), num_targets, dtype=torch.long, device=labels_BL.device),
        num_correct=(logits_KV.detach().argmax(-1) == targets_K).sum(),
    )
