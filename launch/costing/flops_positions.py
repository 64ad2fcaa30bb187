"""Which rows of a position table a block of slots reaches: modeling/attention_positions.py without torch."""

import numpy as np

BLOCK_SLOTS = 64


def map_distances(length: int, position_buckets: int, max_positions: int) -> np.ndarray:
    """Table row of each distance from -(L - 1) to L - 1, ascending: int64 [2L - 1]."""
    distances = np.arange(1 - length, length)
    span = position_buckets if position_buckets > 0 else max_positions
    if position_buckets > 0 and max_positions > 0:
        middle = position_buckets // 2
        sizes = np.abs(distances)
        # fp32, as in the model: a bucket's edge may fall on either side.
        ratio = np.log(np.maximum(sizes, middle).astype(np.float32) / np.float32(middle))
        ratio /= np.log(np.float32((max_positions - 1) / middle))
        far = (np.ceil(ratio * np.float32(middle - 1)) + middle).astype(np.int64)
        distances = np.where(sizes <= middle, distances, far * np.sign(distances))
    return np.clip(distances + span, 0, 2 * span - 1)


def count_reached(length: int, position_buckets: int, max_positions: int, *, descending: bool) -> int:
    """Products of slots with table rows that the blocks of the `fast` kernel compute, a row and a head."""
    rows = map_distances(length, position_buckets, max_positions)
    rows = rows[::-1] if descending else rows
    total = 0
    for start in range(0, length, BLOCK_SLOTS):
        stop = min(start + BLOCK_SLOTS, length)
        reached = rows[length - stop : 2 * length - 1 - start]
        total += (stop - start) * int(reached.max() - reached.min() + 1)
    return total
