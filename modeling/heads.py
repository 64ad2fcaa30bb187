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
from torch.utils.checkpoint import checkpoint
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
    """[B, L, V] without labels. With labels [K, V] in eval mode, and None in training or where the loss is
    taken in chunks: the mixed-precision wrapper of Accelerate would copy them to fp32 (0.3 GB at 614 targets
    of 128,100 pieces) for nobody."""
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
    hidden_BLD: Tensor,
    labels_BL: Tensor,
    decode: Callable[[Tensor], Tensor],
    *,
    keep_logits: bool,
    chunk: int | None = None,
) -> MaskedLMOutput:
    """Loss sum, number of targets and hits of a batch whose head is `decode`, run on [K, D] only.

    `chunk` is the number of targets whose logits exist at a time, None for all. More targets than that are
    scored chunk by chunk, and the backward pass computes the logits of a chunk again: the same sums and
    gradients up to rounding. `decode` must draw nothing at random then.

    A batch without targets gives a loss of 0 that still reaches every parameter, with gradients of 0: a rank
    that drew no target must take part in the exchange of gradients.

    Raises:
        ValueError: the labels have another shape than the rows, or the logits of all targets are to be kept
            while only a chunk of them may exist.
    """
    check_labels(labels_BL, hidden_BLD.shape[:2])
    targets = find_targets(labels_BL)
    hidden_KD = hidden_BLD.flatten(0, 1).index_select(0, targets.slots)
    return score_hidden(hidden_KD, targets.labels, decode, keep_logits=keep_logits, chunk=chunk)


def score_hidden(
    hidden_KD: Tensor,
    labels_K: Tensor,
    decode: Callable[[Tensor], Tensor],
    *,
    keep_logits: bool,
    chunk: int | None = None,
) -> MaskedLMOutput:
    """The same for hidden states that are those of the targets alone."""
    if keep_logits and chunk is not None:
        raise ValueError(
            f"the logits of {chunk} targets are to exist at a time, and those of all are asked for: "
            "leave chunk out, or do not keep them"
        )
    if chunk is None or labels_K.shape[0] <= chunk:
        loss_sum, num_correct, logits_KV = _score(hidden_KD, labels_K, decode)
    else:
        loss_sum, num_correct = _score_chunks(hidden_KD, labels_K, decode, chunk)
        logits_KV = None
    # Counted from the shape, which torch.compile takes for a number that it does not know yet.
    num_targets = torch.full((), labels_K.shape[0], dtype=torch.long, device=labels_K.device)
    return MaskedLMOutput(
        loss=loss_sum / num_targets.clamp(min=1),
        logits=logits_KV if keep_logits else None,
        loss_sum=loss_sum,
        num_targets=num_targets,
        num_correct=num_correct,
    )


def _score(
    hidden_KD: Tensor, labels_K: Tensor, decode: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sum, hits and logits."""
    logits_KV = decode(hidden_KD)
    scores_KV = logits_KV if logits_KV.dtype == torch.float64 else logits_KV.float()
    loss_sum = functional.cross_entropy(scores_KV, labels_K, reduction="sum")
    return loss_sum, (logits_KV.detach().argmax(-1) == labels_K).sum(), logits_KV


def _score_chunks(
    hidden_KD: Tensor, labels_K: Tensor, decode: Callable[[Tensor], Tensor], chunk: int
) -> tuple[Tensor, Tensor]:
    """Loss sum and hits, with the logits of one chunk at a time; none of them is kept for the backward pass.

    At 614 targets, 16,000 classes and a width of 256, 0.6 MB are kept instead of 42 MB, for 1.3 (chunks of
    256) to 1.4 (of 64) times the head's CPU time (measured on one thread). Gradients taken in the forward
    pass would spare the second look, and keep those of the weights, V x D numbers, in place of the logits.
    """

    def score(hidden_CD: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
        return _score(hidden_CD, labels_C, decode)[:2]

    parts = [
        checkpoint(score, hidden_CD, labels_C, use_reentrant=False, preserve_rng_state=False)
        for hidden_CD, labels_C in zip(hidden_KD.split(chunk), labels_K.split(chunk), strict=True)
    ]
    losses, hits = zip(*parts, strict=True)
    return torch.stack(losses).sum(), torch.stack(hits).sum()


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
