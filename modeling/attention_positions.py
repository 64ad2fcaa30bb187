"""Position scores of disentangled attention: what distances mean, and products read along diagonals.

A block of queries (or of keys) meets only the rows of a position table that its distances reach. The products
are widened from buckets to distances, and the wide matrix is read along its diagonals, which is a view: no
gather forward, no scatter-add backward, and every sum in a fixed order.

Shapes: G rows of the batch, L slots of a row, N slots of a block, E size of a head, R rows of a position
table, W = L + N - 1 distances that a block reaches, C rows of the table that it reaches.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

BLOCK_SLOTS = 64


class Positions(NamedTuple):
    """How distances map to rows of a position table; the fields of a DeBERTa configuration."""

    position_buckets: int
    max_positions: int

    @property
    def span(self) -> int:
        """Half the number of rows of a table."""
        return self.position_buckets if self.position_buckets > 0 else self.max_positions

    def rows(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Table row of each distance from -(L - 1) to L - 1, ascending: [2L - 1]."""
        distances = torch.arange(1 - length, length, device=device)
        if self.position_buckets > 0 and self.max_positions > 0:
            distances = make_log_bucket_position(distances, self.position_buckets, self.max_positions)
        return (distances.long() + self.span).clamp(0, 2 * self.span - 1)


@dataclass(frozen=True)
class Block:
    """Slots of a block and where its distances lie in a table."""

    start: int
    stop: int
    first_row: int
    last_row: int
    columns: Tensor
    """[W] column of each distance among the C rows of the table that the block reaches."""


@lru_cache(maxsize=64)
def plan_blocks(length: int, positions: Positions, descending: bool) -> tuple[Block, ...]:
    """Blocks of a row; `descending` for blocks of queries, whose distances fall from key to key."""
    rows = positions.rows(length)
    rows = rows.flip(0) if descending else rows
    blocks = []
    for start in range(0, length, BLOCK_SLOTS):
        stop = min(start + BLOCK_SLOTS, length)
        reached = rows[length - stop : 2 * length - 1 - start]
        first, last = int(reached.min()), int(reached.max()) + 1
        blocks.append(Block(start, stop, first, last, reached - first))
    return tuple(blocks)


class Workspace:
    """Buffers of the chunks: fresh pages for each of them would cost more than the arithmetic."""

    def __init__(self, like: Tensor):
        self.dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A buffer of this name and shape; what it holds is undefined."""
        found = self._buffers.get(name)
        size = int(np.prod(shape))
        if found is None or found.numel() < size:
            found = self._buffers[name] = torch.empty(size, dtype=self.dtype)
        return found[:size].view(shape)

    def multiply(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """The batched product, in the precision of the scores."""
        target = self.take(name, left.shape[0], left.shape[1], right.shape[2])
        if left.dtype == self.dtype:
            return torch.bmm(left, right, out=target)
        return target.copy_(torch.bmm(left, right))


def view_diagonals(wide: Tensor, num_rows: int, num_slots: int, length: int) -> Tensor:
    """[G, N, L] view of contiguous [G * N, W]: element (r, j) is column j - r + N - 1."""
    width = wide.shape[1]
    return wide.as_strided(
        (num_rows, num_slots, length),
        (num_slots * width, width - 1, 1),
        wide.storage_offset() + num_slots - 1,
    )


def score_positions(
    target_GLL: Tensor, states_GLE: Tensor, table_RE: Tensor, blocks: tuple[Block, ...]
) -> None:
    """Add the products of states and table to [G, L, L], one row of it a state."""
    num_rows, length = states_GLE.shape[:2]
    for block in blocks:
        states = states_GLE[:, block.start : block.stop].flatten(0, 1)
        products = states @ table_RE[block.first_row : block.last_row].t()
        wide = products.index_select(1, block.columns)
        num_slots = block.stop - block.start
        target_GLL[:, block.start : block.stop] += view_diagonals(wide, num_rows, num_slots, length)


def backpropagate_positions(
    gradient_GLL: Tensor,
    states_GLE: Tensor,
    table_RE: Tensor,
    blocks: tuple[Block, ...],
    sums: tuple[Tensor, Tensor],
    work: Workspace,
) -> None:
    """Add the gradients of `score_positions` to `sums`: of the states [G, L, E] and of the table [R, E]."""
    num_rows, length = states_GLE.shape[:2]
    states_sum, table_sum = sums
    for block in blocks:
        num_slots, num_reached = block.stop - block.start, block.last_row - block.first_row
        wide = work.take("wide", num_rows * num_slots, length + num_slots - 1).zero_()
        view_diagonals(wide, num_rows, num_slots, length).copy_(gradient_GLL[:, block.start : block.stop])
        # Rows are added, whole and in order: transposing first is faster than adding columns by 3 to 1.
        turned = work.take("turned", wide.shape[1], wide.shape[0]).copy_(wide.t())
        folded = work.take("folded", num_reached, wide.shape[0]).zero_().index_add_(0, block.columns, turned)
        folded = folded.to(states_GLE.dtype)
        states = states_GLE[:, block.start : block.stop].flatten(0, 1)
        reached = slice(block.first_row, block.last_row)
        states_sum[:, block.start : block.stop] += (folded.t() @ table_RE[reached]).unflatten(
            0, (num_rows, -1)
        )
        table_sum[reached] += folded @ states
