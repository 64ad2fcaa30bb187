"""Evaluation: the model on the frozen masks, summed exactly over all ranks."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from data_pipes.feed import FrozenBatches, move_batch
from launch import fault
from launch.engine import sum_over_ranks
from launch.stop import StopFlag
from modeling.rtd import NUM_SCORE_BINS, RtdModel

if TYPE_CHECKING:
    from launch.judging.suite import Suite

_CHECK_EVERY = 4
"""Batches between two looks whether to stop."""
_HIDDEN = ("loss_sum", "num_correct", "num_targets")
_JUDGED = ("discriminator_loss_sum", "num_replaced", "num_positions")


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


@dataclass(frozen=True)
class PairScore(Score):
    """What an evaluation of a generator and a discriminator found; the first figures are the generator's.

    Attributes:
        discriminator_loss: nats per judged piece.
        discriminator_base_loss: the same for one that knows the share of replaced pieces and nothing else.
        discriminator_auc: the chance that of a replaced and an original piece it puts the right one first;
            ties count half, those within a bin of 1/2048 of a logit too. 0.5 where there are no such two.
        num_positions: judged pieces over all ranks.
        num_replaced: of them those that are not the original ones.
    """

    discriminator_loss: float
    discriminator_base_loss: float
    discriminator_auc: float
    num_positions: int
    num_replaced: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    frozen: FrozenBatches,
    device: torch.device,
    stop: StopFlag | None = None,
    suite: "Suite | None" = None,
) -> Score:
    """Score a model on every frozen batch.

    Each batch has a slot in one table, filled by the rank that owns it and added up in a fixed order in
    float64, so that any number of ranks gives the same bits.

    Args:
        model: the bare model; a wrapped one would wait for ranks that have a batch less.
        frozen: this rank's batches.
        device: where the model is.
        stop: looked at every few batches, by all ranks at the same ones.
        suite: sees every batch, and so needs no pass of its own over them.

    Raises:
        StopAsked: a rank is asked to stop; nothing has changed.
    """
    is_pair = isinstance(model, RtdModel)
    names = _HIDDEN + _JUDGED if is_pair else _HIDDEN
    was_training = model.training
    model.eval()
    sums = torch.zeros(frozen.num_batches, len(names), dtype=torch.float64)
    score_counts = torch.zeros(2, NUM_SCORE_BINS, dtype=torch.int64, device=device)
    if suite is not None:
        suite.restart()
    num_ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    num_shared = frozen.num_batches // num_ranks  # ranks may differ by one batch
    for index, (number, batch) in enumerate(frozen):
        fault.at("in_evaluation")
        if stop is not None:
            stop.count(index, len(frozen))
        if stop is not None and index % _CHECK_EVERY == 0 and index < num_shared:
            model.train(was_training)
            stop.check(device)
            model.eval()
        output = model(**move_batch(batch, device))
        if number is None:  # it only kept the ranks together
            continue
        sums[number] = torch.stack([output[name].double() for name in names]).cpu()
        if is_pair:
            score_counts += output.score_counts
        if suite is not None:
            suite.observe(number, batch["labels"], model, output)
    model.train(was_training)
    totals = sum_over_ranks(sums.to(device)).cpu().sum(dim=0).tolist()
    hidden = Score.of(*totals[: len(_HIDDEN)])
    if not is_pair:
        return hidden
    loss_sum, num_replaced, num_positions = totals[len(_HIDDEN) :]
    return score_pair(hidden, loss_sum, num_replaced, num_positions, sum_over_ranks(score_counts).cpu())


def score_pair(
    hidden: Score, loss_sum: float, num_replaced: float, num_positions: float, score_counts: Tensor
) -> PairScore:
    """Divide the sums of the discriminator; its counts by bin are int64 [2, bins]."""
    share = num_replaced / num_positions
    base = -sum(part * math.log(part) for part in (share, 1 - share) if part > 0)
    return PairScore(
        **asdict(hidden),
        discriminator_loss=loss_sum / num_positions,
        discriminator_base_loss=base,
        discriminator_auc=measure_auc(score_counts),
        num_positions=int(num_positions),
        num_replaced=int(num_replaced),
    )


def measure_auc(score_counts: Tensor) -> float:
    """Area under the curve of counts by ascending score, int64 [2, bins]: negatives, positives."""
    negatives, positives = score_counts
    num_pairs = int(negatives.sum()) * int(positives.sum())
    if num_pairs == 0:
        return 0.5
    twice_below = 2 * negatives.cumsum(0) - negatives
    return int((positives * twice_below).sum()) / (2 * num_pairs)
