"""Mixture: several sources in one order, each sample's source given by an exact schedule of the weights.

The schedule is a cycle of M slots in which source j owns a_j, its weight times M. Unit k of source j comes in
one of the slots floor(k * M / a_j) to ceil((k + 1) * M / a_j) - 1 (the windows of Baruah, Cohen, Plaxton and
Varvel 1996), so after any n samples source j was seen less than once more or less than n * a_j / M times.
Earliest deadline first finds such slots, as it does wherever tasks of one slot have a schedule.

Shapes: J sources, M slots in a cycle, G rows in a step.
"""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from data_pipes.order import check_positive, permute, samples_of_step

MAX_CYCLE = 1 << 16


class Mixture:
    """Rows of several sources in fixed shares.

    A source is passed through again and again, each time in an order of its own, however often the others
    were; its epochs are counted for itself. One source alone is in the plain order.

    Attributes:
        shares: the share of each source as it is kept, exact, summing to 1.
        is_exact: whether these are the weights that were asked for; weights whose cycle would be longer than
            MAX_CYCLE slots are rounded to that many parts, at least one for each source.
    """

    def __init__(
        self, source_rows: Sequence[int], weights: Sequence[int | float | str | Fraction], seed: int
    ) -> None:
        """Set out the cycle.

        Args:
            source_rows: rows of each source; they lie one source after the other in the store.
            weights: how often each source is seen, relative to the others. 0.7 is taken as seven tenths.
            seed: key of the orders.
        """
        self._sizes = [int(size) for size in source_rows]
        wanted = _check_weights(self._sizes, weights)
        counts = _count_slots(wanted)
        self._seed = seed
        self._firsts = np.cumsum([0, *self._sizes])[:-1]
        self._pattern = schedule(counts)
        self._ranks = np.empty_like(self._pattern)
        for source, count in enumerate(counts):
            self._ranks[self._pattern == source] = np.arange(count)
        self._counts = np.array(counts)
        self.shares = tuple(Fraction(count, len(self._pattern)) for count in counts)
        self.is_exact = self.shares == tuple(wanted)

    def rows_of_step(self, step: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Name the rows of a step and the epoch that each is seen in, int64 [G] and int64 [G].

        The epoch is that of the row's source.
        """
        cycles, slots = np.divmod(samples_of_step(step, global_batch), len(self._pattern))
        sources = self._pattern[slots]
        numbers = cycles * self._counts[sources] + self._ranks[slots]
        row_ids, epochs = np.empty_like(numbers), np.empty_like(numbers)
        for source in np.unique(sources):
            own = sources == source
            size = self._sizes[source]
            epochs[own], places = np.divmod(numbers[own], size)
            row_ids[own] = self._firsts[source] + permute(
                places, num_rows=size, seed=self._seed, epochs=epochs[own], parts=int(source)
            )
        return row_ids, epochs

    def count_epochs(self, num_samples: int) -> float:
        """Give the samples over the rows of all sources; a source of more than its share is further on."""
        return num_samples / sum(self._sizes)


def schedule(counts: Sequence[int]) -> np.ndarray:
    """Name the source of each slot of a cycle in which source j owns counts[j] slots, int64 [M]."""
    length = sum(counts)
    placed = [0] * len(counts)
    waiting = [
        (0, source) for source in range(len(counts))
    ]  # (first slot that the next unit may take, source)
    ready: list[tuple[int, int]] = []  # (end of the slots that it may take, source)
    pattern = np.empty(length, np.int64)
    for slot in range(length):
        while waiting and waiting[0][0] <= slot:
            _, source = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(placed[source] + 1) * length // counts[source]), source))
        _, source = heapq.heappop(ready)
        pattern[slot] = source
        placed[source] += 1
        heapq.heappush(waiting, (placed[source] * length // counts[source], source))
    return pattern


def _check_weights(sizes: Sequence[int], weights: Sequence[int | float | str | Fraction]) -> list[Fraction]:
    """Give the weights as exact shares that sum to 1."""
    if not sizes or len(sizes) != len(weights):
        raise ValueError(f"{len(sizes)} sources and {len(weights)} weights: give each source one weight")
    shares = []
    for source, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        check_positive(f"rows of source {source}", size)
        try:
            share = Fraction(str(weight))
        except ValueError:
            share = Fraction(0)
        if share <= 0:
            raise ValueError(
                f"the weight of source {source} is {weight}: give a number above 0, or leave the source out"
            )
        shares.append(share)
    total = sum(shares)
    return [share / total for share in shares]


def _count_slots(shares: Sequence[Fraction]) -> list[int]:
    """Give the slots of each source in the shortest exact cycle, or in one of MAX_CYCLE slots."""
    if len(shares) > MAX_CYCLE:
        raise ValueError(f"{len(shares):,} sources: a cycle of {MAX_CYCLE:,} slots has no room for all")
    length = math.lcm(*(share.denominator for share in shares))
    if length <= MAX_CYCLE:
        return [int(share * length) for share in shares]
    # Every source gets a slot; the rest goes by largest remainder.
    wanted = [share * (MAX_CYCLE - len(shares)) for share in shares]
    counts = [1 + math.floor(count) for count in wanted]
    by_remainder = sorted(range(len(shares)), key=lambda source: math.floor(wanted[source]) - wanted[source])
    for source in by_remainder[: MAX_CYCLE - sum(counts)]:
        counts[source] += 1
    return counts
