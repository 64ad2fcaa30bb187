"""Disentangled attention on a CPU, chunk by chunk: what the operator of `attention_kernels` computes.

Scores are Q_i.K_j + Q_i.KeyTable[d] + K_j.QueryTable[d], where d is the table row of the distance i - j. One
head of a few rows of the batch is done at a time, so that its scores stay in the cache.

Shapes: H heads, B rows of the batch, G rows of one chunk, L slots of a row, E size of a head, R rows of a
position table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling.attention_positions import (
    Block,
    Positions,
    Workspace,
    backpropagate_positions,
    plan_blocks,
    score_positions,
)

CHUNK_SCORES = 1 << 18
"""Scores of a chunk: 1 MiB in fp32, the second-level cache of one core."""


class Settings(NamedTuple):
    """Numbers of an attention, in the order in which the operator takes them as a list."""

    num_heads: int
    position_buckets: int
    max_positions: int
    scale: float
    """Every score is divided by it."""
    dropout: float
    recompute: bool
    """Compute the probabilities again in the backward instead of keeping them."""

    @classmethod
    def read(cls, numbers: list[float]) -> "Settings":
        """From the operator's list of numbers."""
        heads, buckets, positions, scale, dropout, recompute = numbers
        return cls(int(heads), int(buckets), int(positions), scale, dropout, bool(recompute))

    @property
    def positions(self) -> Positions:
        """How distances map to rows of a table."""
        return Positions(self.position_buckets, self.max_positions)


@dataclass
class Inputs:
    """Tensors of one attention. Queries are already divided by the scale, and so is the query table."""

    query: Tensor
    """[H, B, L, E], as are `key` and `value`."""
    key: Tensor
    value: Tensor
    key_table: Tensor | None
    """[H, R, E], as is `query_table`."""
    query_table: Tensor | None
    allowed: Tensor | None
    """[B, 1 or L, L]; None where every slot attends to every slot."""
    settings: Settings

    @property
    def length(self) -> int:
        """L."""
        return self.query.shape[2]

    def blocks(self, descending: bool) -> tuple[Block, ...]:
        """Blocks of queries (`descending`) or of keys."""
        return plan_blocks(self.length, self.settings.positions, descending)

    def chunks(self) -> Iterator[tuple[int, slice]]:
        """Each head with a few rows of the batch, in a fixed order."""
        num_heads, num_rows = self.query.shape[:2]
        size = max(1, CHUNK_SCORES // self.length**2)
        for head in range(num_heads):
            for start in range(0, num_rows, size):
                yield head, slice(start, min(start + size, num_rows))


def transpose_slots(matrix_GLL: Tensor, target_GLL: Tensor) -> Tensor:
    """`target` as the transpose of `matrix`: one by one, which torch does 3 times faster than at once."""
    for matrix, target in zip(matrix_GLL, target_GLL, strict=True):
        target.copy_(matrix.t())
    return target_GLL


def compute_scores(inputs: Inputs, head: int, rows: slice, work: Workspace) -> Tensor:
    """Scores [G, L, L] of a chunk, in a buffer."""
    query, key = inputs.query[head, rows], inputs.key[head, rows]
    scores = work.multiply("scores", query, key.transpose(1, 2))
    if inputs.key_table is not None:
        score_positions(scores, query, inputs.key_table[head], inputs.blocks(descending=True))
    if inputs.query_table is not None:
        by_key = work.take("by_key", *scores.shape).zero_()
        score_positions(by_key, key, inputs.query_table[head], inputs.blocks(descending=False))
        scores += transpose_slots(by_key, work.take("by_query", *scores.shape))
    if inputs.allowed is not None:
        # The least number, not minus infinity: a slot that may see nothing then sees all alike, as in
        # Hugging Face's attention, and no NaN comes up.
        least = torch.finfo(inputs.query.dtype).min
        scores.masked_fill_(~inputs.allowed[rows], least)
    return scores


def draw_dropout(shape: torch.Size, rate: float, generator: np.random.BitGenerator) -> Tensor:
    """fp32, negative where a probability is dropped, else 0 or above.

    16 random bits each: 0.7 ns, against 9 ns of torch's `bernoulli_`. The rate is met to 1 / 65,536.
    """
    num_lanes = int(np.prod(shape))
    words = generator.random_raw(-(-num_lanes // 4)).view(np.int16)[:num_lanes]
    return torch.from_numpy(words).view(shape).float().sub_(count_dropped(rate) - 32768)


def count_dropped(rate: float) -> int:
    """How many of the 65,536 values of 16 bits mean that a probability is dropped."""
    return min(max(round(rate * 65536), 1), 65535)


def keep_share(rate: float) -> float:
    """Share of the probabilities that are kept, exactly."""
    return 1.0 - count_dropped(rate) / 65536 if rate > 0 else 1.0


class Probabilities:
    """Probabilities of all chunks, signed: minus where dropout takes one, so that no mask is kept."""

    def __init__(self, inputs: Inputs, seed: int, work: Workspace):
        self.inputs, self.seed, self.work = inputs, seed, work

    def compute(self, head: int, rows: slice) -> Tensor:
        """[G, L, L] of a chunk, in a buffer; the same at every call."""
        scores = compute_scores(self.inputs, head, rows, self.work)
        probabilities = torch.softmax(scores, -1, out=self.work.take("probabilities", *scores.shape))
        rate = self.inputs.settings.dropout
        if rate > 0:
            # One generator a chunk: the backward can draw any of them again.
            generator = np.random.SFC64(np.random.SeedSequence([self.seed, head, rows.start]))
            probabilities.copysign_(draw_dropout(probabilities.shape, rate, generator))
        return probabilities


def attend(inputs: Inputs, seed: int) -> tuple[Tensor, Tensor]:
    """Contexts [H, B, L, E] and the signed probabilities [H, B, L, L], empty if they are to be recomputed."""
    query, value, settings = inputs.query, inputs.value, inputs.settings
    work = Workspace(query)
    probabilities = Probabilities(inputs, seed, work)
    num_heads, num_rows, length = query.shape[:3]
    shape = (0,) if settings.recompute else (num_heads, num_rows, length, length)
    kept, contexts = query.new_empty(shape), torch.empty_like(query)
    for head, rows in inputs.chunks():
        signed = probabilities.compute(head, rows)
        if not settings.recompute:
            kept[head, rows] = signed
        if settings.dropout > 0:
            signed = signed.clamp_(min=0)
        contexts[head, rows] = torch.bmm(signed.to(value.dtype), value[head, rows])
    return contexts.div_(keep_share(settings.dropout)), kept


@dataclass
class Gradients:
    """Gradients of `Inputs`, in the precision of the scores; tables that are absent stay None."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_table: Tensor | None
    query_table: Tensor | None


def backpropagate(
    inputs: Inputs, gradient_HBLE: Tensor, contexts_HBLE: Tensor, kept: Tensor, seed: int
) -> Gradients:
    """Gradients of `attend` for that of its contexts."""
    work = Workspace(inputs.query)
    probabilities = Probabilities(inputs, seed, work)
    sums = Gradients(
        *(torch.zeros_like(t, dtype=work.dtype) for t in (inputs.query, inputs.key, inputs.value)),
        *(
            None if table is None else torch.zeros_like(table, dtype=work.dtype)
            for table in (inputs.key_table, inputs.query_table)
        ),
    )
    deltas_HBL1 = (gradient_HBLE.to(work.dtype) * contexts_HBLE).sum(-1, keepdim=True)
    gradient_HBLE = gradient_HBLE / keep_share(inputs.settings.dropout)
    is_blind = None if inputs.allowed is None else ~inputs.allowed.any(-1, keepdim=True)
    for head, rows in inputs.chunks():
        signed = probabilities.compute(head, rows) if inputs.settings.recompute else kept[head, rows]
        gradient = gradient_HBLE[head, rows]
        scores = _backpropagate_softmax(
            inputs, sums, (head, rows), (signed, gradient, deltas_HBL1[head, rows]), work
        )
        if is_blind is not None and bool(is_blind[rows].any()):
            scores.masked_fill_(is_blind[rows], 0.0)
        _backpropagate_scores(inputs, sums, (head, rows), scores, work)
    return sums


def _backpropagate_softmax(
    inputs: Inputs,
    sums: Gradients,
    where: tuple[int, slice],
    parts: tuple[Tensor, Tensor, Tensor],
    work: Workspace,
) -> Tensor:
    """Gradient of the scores [G, L, L] of a chunk, in a buffer; adds that of the values."""
    signed, gradient, deltas = parts
    value = inputs.value[where]
    result = work.multiply("scores", gradient, value.transpose(1, 2))
    if inputs.settings.dropout == 0:
        sums.value[where] = torch.bmm(signed.to(value.dtype).transpose(1, 2), gradient)
        return result.sub_(deltas).mul_(signed)
    used = torch.clamp(
        signed, min=0, out=work.take("used", *signed.shape) if signed.dtype == work.dtype else None
    )
    sums.value[where] = torch.bmm(used.to(value.dtype).transpose(1, 2), gradient)
    return result.mul_(used).addcmul_(signed.abs().to(work.dtype), deltas, value=-1)


def _backpropagate_scores(
    inputs: Inputs, sums: Gradients, where: tuple[int, slice], scores_GLL: Tensor, work: Workspace
) -> None:
    head, _ = where
    query, key = inputs.query[where], inputs.key[where]
    low = scores_GLL.to(query.dtype)
    query_sum, key_sum = sums.query[where], sums.key[where]
    query_sum += torch.bmm(low, key)
    key_sum += torch.bmm(low.transpose(1, 2), query)
    if inputs.key_table is not None and sums.key_table is not None:
        blocks, totals = inputs.blocks(descending=True), (query_sum, sums.key_table[head])
        backpropagate_positions(scores_GLL, query, inputs.key_table[head], blocks, totals, work)
    if inputs.query_table is not None and sums.query_table is not None:
        blocks, totals = inputs.blocks(descending=False), (key_sum, sums.query_table[head])
        by_key = transpose_slots(scores_GLL, work.take("by_key", *scores_GLL.shape))
        backpropagate_positions(by_key, key, inputs.query_table[head], blocks, totals, work)
