"""Shapes: the few row lengths in slots that batches are padded to, and what a step then costs.

A row of n pieces needs a certain number of slots, its exact length (`Layout.count_slots`). Here that is a
table, so that thousands of rows are looked up at once and a plan needs no tensors.

Shapes: n pieces in a row, 0 to row_length; G rows in a step.
"""

from collections.abc import Callable

import numpy as np

from data_pipes.masks.draws import as_unit, draw
from data_pipes.ordering.division import share

_SIMULATION = 0x5A9E  # a stream of draws of its own: nothing that is trained on depends on it


def tabulate_slots(count_slots: Callable[[int], int], row_length: int) -> np.ndarray:
    """Give the slots that a row of n pieces needs, int64 [row_length + 1]."""
    return np.array([count_slots(pieces) for pieces in range(row_length + 1)], np.int64)


def choose_shapes(
    histogram: np.ndarray, count_slots: Callable[[int], int], num_shapes: int = 8
) -> tuple[int, ...]:
    """Choose the shapes, ascending, that rows rounded up to the next one pad least with.

    The sum of slots over the histogram is the least possible with so many shapes, found by dynamic
    programming. The last shape holds every row that the histogram has an entry for, be it 0.

    Args:
        histogram: rows of n pieces, [longest n + 1].
        count_slots: slots that a row of n pieces needs.
        num_shapes: most shapes to use.
    """
    if num_shapes < 1 or len(histogram) == 0:
        raise ValueError(
            f"num_shapes is {num_shapes} for a histogram of {len(histogram)} entries: both must be at least 1"
        )
    slots = tabulate_slots(count_slots, len(histogram) - 1)
    values, groups = np.unique(slots, return_inverse=True)
    num_before = np.concatenate(([0], np.cumsum(np.bincount(groups, weights=histogram))))
    # cost[i, j]: slots of the rows with values[i] to values[j] when all take values[j].
    cost = np.where(
        np.arange(len(values))[:, None] <= np.arange(len(values)),
        (num_before[1:] - num_before[:-1, None]) * values,
        np.inf,
    )
    least, firsts = cost[0], []
    for _ in range(min(num_shapes, len(values)) - 1):
        # One shape more: the last one from i on, the others as good as they can be before i.
        totals = np.concatenate(([0.0], least[:-1]))[:, None] + cost
        firsts.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
    shapes, last = [int(values[-1])], len(values) - 1
    for first in reversed(firsts):
        last = int(first[last]) - 1
        if last < 0:
            break
        shapes.append(int(values[last]))
    return tuple(reversed(shapes))


def expect_slots(
    histogram: np.ndarray,
    slots: np.ndarray,
    *,
    global_batch: int,
    num_micro_batches: int,
    world_size: int = 1,
    num_steps: int = 32,
) -> float:
    """Give the slots that a row takes in training, padding included: the mean over simulated steps.

    Steps are drawn from the histogram and cut as `division.share` does; with the same arguments the answer
    is always the same.

    Args:
        histogram: rows of n pieces, [longest n + 1].
        slots: slots that a row of n pieces needs, int64 [row_length + 1], as laid out.
        global_batch: rows of a step.
        num_micro_batches: micro-batches of a rank (the accumulation).
        world_size: ranks.
        num_steps: steps to simulate, a rank in each.
    """
    below = np.cumsum(histogram)
    if not len(below) or below[-1] <= 0:
        raise ValueError("the histogram holds no rows: count the lengths of the corpus first")
    micro_batch = max(1, global_batch // world_size // num_micro_batches)
    num_slots = num_rows = 0
    for step in range(num_steps):
        chance = as_unit(draw(0, step, np.arange(global_batch), 0, _SIMULATION))
        lengths = np.searchsorted(below, chance * below[-1], side="right")
        parts = share(
            lengths, slots=slots, micro_batch=micro_batch, rank=step % world_size, world_size=world_size
        )
        num_slots += sum(len(part) * int(slots[lengths[part]].max()) for part in parts)
        num_rows += sum(map(len, parts))
    return num_slots / num_rows


def choose_accumulation(
    histogram: np.ndarray,
    slots: np.ndarray,
    *,
    exact_slots: np.ndarray,
    global_batch: int,
    world_size: int = 1,
    max_ratio: float = 1.35,
) -> int:
    """Give the fewest micro-batches of a rank with which rows take at most max_ratio times their exact slots.

    Where no number does it, the one that pads least.

    Args:
        histogram: rows of n pieces, [longest n + 1].
        slots: slots of a row of n pieces as it is laid out, rounded up to shapes if there are any.
        exact_slots: slots that it needs.
        global_batch: rows of a step.
        world_size: ranks.
        max_ratio: limit on slots taken over slots needed, both means over rows.
    """
    num_own = global_batch // world_size
    wanted = max_ratio * float((histogram * exact_slots[: len(histogram)]).sum() / np.sum(histogram))
    found = {}
    for number in (n for n in range(1, num_own + 1) if num_own % n == 0):
        found[number] = expect_slots(
            histogram, slots, global_batch=global_batch, num_micro_batches=number, world_size=world_size
        )
        if found[number] <= wanted:
            return number
    return min(found, key=lambda number: (found[number], number))
