"""Feed: the batches of each step, for one rank, and the fixed batches of an evaluation.

What a step holds depends on (rows, seed, step) only; ranks and micro-batches only divide it. So a resume
needs the step number and nothing else, and another number of GPUs trains on the same rows and masks.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_pipes.collate import NOT_A_TARGET, Batch, Layout, collate
from data_pipes.masking import FROZEN_EPOCH, Masking, hide
from data_pipes.order import check_division, check_rank, deal, rows_of_step, share
from data_pipes.rows import RowSource

# One step in preparation and one ready: more would only cost memory, as preparing is faster than training.
_NUM_AHEAD = 2


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a step.

    Attributes:
        micro_batches: what `collate` gives, one per accumulation step; equally many on every rank.
        num_targets: hidden pieces of this rank.
        num_rows: rows of this rank.
        num_pieces: slots of this rank that hold something, added CLS and SEP included.
        num_slots: slots of this rank with padding.
        epoch: passes through the data that all ranks have made after this step.
    """

    micro_batches: list[Batch]
    num_targets: int
    num_rows: int
    num_pieces: int
    num_slots: int
    epoch: float


class Feed:
    """Training batches of one rank, by step number."""

    def __init__(
        self,
        rows: RowSource,
        *,
        layout: Layout,
        masking: Masking,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Check that the batch divides: global_batch rows over all ranks, micro_batch rows at once on one."""
        if rows.num_rows == 0:
            raise ValueError("there are no rows to train on: check the sources and what `clean` dropped")
        check_rank(rank, world_size)
        check_division(global_batch, micro_batch=micro_batch, world_size=world_size)
        self._rows = rows
        self._lengths = rows.lengths
        self._layout = layout
        self._masking = masking
        self._seed = seed
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        self._rank = rank
        self._world_size = world_size

    def load(self, step: int) -> StepBatch:
        """Prepare this rank's part of a step; steps count from 0 and may be asked for in any order."""
        row_ids, epochs = rows_of_step(
            step, global_batch=self._global_batch, num_rows=self._rows.num_rows, seed=self._seed
        )
        parts = share(
            self._lengths[row_ids],
            micro_batch=self._micro_batch,
            rank=self._rank,
            world_size=self._world_size,
        )
        batches = [self._load_batch(row_ids[part], epochs[part]) for part in parts]
        return StepBatch(
            micro_batches=batches,
            num_targets=sum(int((batch["labels"] != NOT_A_TARGET).sum()) for batch in batches),
            num_rows=sum(len(part) for part in parts),
            num_pieces=sum(int(batch["attention_mask"].sum()) for batch in batches),
            num_slots=sum(batch["labels"].numel() for batch in batches),
            epoch=(step + 1) * self._global_batch / self._rows.num_rows,
        )

    def steps(self, first: int, stop: int) -> Generator[StepBatch, None, None]:
        """Give steps first to stop - 1, prepared ahead by one thread.

        An error while a step is prepared is raised where that step would have been given. The thread ends
        with the generator: at the last step, on `close()`, or when nothing refers to it any more.
        """
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        ahead: deque[Future[StepBatch]] = deque()
        try:
            for step in range(first, stop):
                while len(ahead) <= _NUM_AHEAD and step + len(ahead) < stop:
                    ahead.append(pool.submit(self.load, step + len(ahead)))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _load_batch(self, row_ids: np.ndarray, epochs: np.ndarray) -> Batch:
        return _load(self._rows, self._layout, self._masking, row_ids, epochs, self._seed)


class FrozenBatches:
    """Evaluation batches of one rank: every row once over all ranks, and the same masks every time.

    Iterating gives (number, batch); the numbers of all ranks together are 0 to num_batches - 1, so ranks may
    differ by one batch.

    Attributes:
        num_batches: batches of all ranks.
    """

    def __init__(
        self,
        rows: RowSource,
        *,
        layout: Layout,
        masking: Masking,
        seed: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Sort the rows by length, longest first, and cut them; the last batch may be smaller."""
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: it must be at least 1")
        check_rank(rank, world_size)
        self.num_batches = -(-rows.num_rows // micro_batch)
        self._parts = deal(rows.lengths, micro_batch=micro_batch, rank=rank, world_size=world_size)
        self._rows = rows
        self._layout = layout
        self._masking = masking
        self._seed = seed

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        for number, row_ids in self._parts:
            epochs = np.full(len(row_ids), FROZEN_EPOCH)
            yield number, _load(self._rows, self._layout, self._masking, row_ids, epochs, self._seed)


def _load(
    source: RowSource,
    layout: Layout,
    masking: Masking,
    row_ids: np.ndarray,
    epochs: np.ndarray,
    seed: int,
) -> Batch:
    rows = source.take(row_ids)
    return collate(rows, hide(rows, masking, row_ids=row_ids, epochs=epochs, seed=seed), layout)
