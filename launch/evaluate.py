"""Evaluation: the model on the frozen masks, summed exactly over all ranks."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn

from data_pipes.feed import FrozenBatches, move_batch
from launch.engine import sum_over_ranks


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    Attributes:
        loss: nats per target.
        perplexity: exp(loss); infinite where that overflows.
        accuracy: share of the targets that the model puts first.
        num_targets: over all ranks.
    """

    loss: float
    perplexity: float
    accuracy: float
    num_targets: int

    @classmethod
    def of(cls, loss_sum: float, num_correct: float, num_targets: float) -> "Score":
        """Divide the sums."""
        loss = loss_sum / num_targets
        return cls(
            loss, math.exp(loss) if loss < 700 else math.inf, num_correct / num_targets, int(num_targets)
        )

    def as_dict(self) -> dict[str, float]:
        """For a log."""
        return asdict(self)


@torch.no_grad()
def evaluate(model: nn.Module, frozen: FrozenBatches, device: torch.device) -> Score:
    """Score a model on every frozen batch.

    Each batch has a slot in one table, filled by the rank that owns it and added up in a fixed order in
    float64, so that any number of ranks gives the same bits.

    Args:
        model: the bare model; a wrapped one would wait for ranks that have a batch less.
        frozen: this rank's batches.
        device: where the model is.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(frozen.num_batches, 3, dtype=torch.float64)
    for number, batch in frozen:
        output = model(**move_batch(batch, device))
        counted = (output.loss_sum, output.num_correct, output.num_targets)
        if number is None:  # it only kept the ranks together
            continue
        sums[number] = torch.stack([value.double() for value in counted]).cpu()
    model.train(was_training)
    loss_sum, num_correct, num_targets = sum_over_ranks(sums.to(device)).cpu().sum(dim=0).tolist()
    return Score.of(loss_sum, num_correct, num_targets)
