"""What a model says at the targets of a batch.

Shapes: R rows, N pieces of them, K targets in row-major order, V classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data_pipes.masking import Hidden
from data_pipes.rows import Rows

# Sums of multiples of 2^-24 nats are exact in float64 up to 5e8 nats, so that they do not depend on their
# order, on batches or on ranks. It moves a target's value by at most 3e-8 nats.
_GRID = 2.0**24
# Elements of float64 logits at once: 32 MB.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Sheet:
    """Rows with something hidden.

    Attributes:
        row_ids: int64 [R], their numbers in the source.
        rows: as they were.
        hidden: as the model sees them.
        owners: int64 [K], what each target belongs to, for passes that hide spans; else empty.
    """

    row_ids: np.ndarray
    rows: Rows
    hidden: Hidden
    owners: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """Where the targets are in the pieces of the rows, int64 [K]."""
        return self.hidden.is_target.nonzero()[0]


@dataclass(frozen=True)
class Scored:
    """The targets of a sheet and what the model says of them.

    Attributes:
        sheet: the rows.
        losses: float64 [K], negative log likelihood of the original piece in nats, multiples of 2^-24.
        ranks: int64 [K], classes that the model puts before the original piece.
    """

    sheet: Sheet
    losses: np.ndarray
    ranks: np.ndarray


@torch.no_grad()
def score_logits(logits_KV: Tensor, classes_K: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Negative log likelihoods, float64 [K], and ranks, int64 [K]; of equals the lower class is first."""
    losses, ranks = [], []
    step = max(1, _CHUNK // max(1, logits_KV.shape[-1]))
    order_V = torch.arange(logits_KV.shape[-1], device=logits_KV.device)
    for part_KV, own_K in zip(logits_KV.split(step), classes_K.split(step), strict=True):
        scores_KV, own_K1 = part_KV.double(), own_K[:, None]
        score_K1 = scores_KV.gather(1, own_K1)
        losses.append(scores_KV.logsumexp(1) - score_K1[:, 0])
        # Counted by what comes after: a score that is no number is before nothing, and must not be first.
        is_after = (scores_KV < score_K1) | ((scores_KV == score_K1) & (order_V >= own_K1))
        ranks.append(scores_KV.shape[1] - is_after.sum(1))
    if not losses:
        return np.zeros(0), np.zeros(0, np.int64)
    return round_losses(torch.cat(losses).cpu().numpy()), torch.cat(ranks).cpu().numpy()


def round_losses(losses: np.ndarray) -> np.ndarray:
    """The nearest values whose sums are exact."""
    return np.rint(losses * _GRID) / _GRID


def map_classes(model: nn.Module, labels: Tensor) -> Tensor:
    """Labels as classes of the model's head: code points have a table, pieces are their own."""
    return model.map_labels(labels) if hasattr(model, "map_labels") else labels  # pyright: ignore[reportCallIssue]
