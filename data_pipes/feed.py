"""Feed: the batches of each step, for one rank, and the fixed batches of an evaluation.

What a step holds depends on (rows, seed, step) only; ranks and micro-batches only divide it. So a resume
needs the step number and nothing else, and another number of GPUs trains on the same rows and masks.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch

from data_pipes.collate import NOT_A_TARGET, Batch, Layout, collate
from data_pipes.masking import FROZEN_EPOCH, Hidden, Masking, hide
from data_pipes.order import Order, PlainOrder
from data_pipes.ordering.division import check_division, check_rank, deal, share
from data_pipes.ordering.shapes import tabulate_slots
from data_pipes.rows import RowSource

_MAX_WORKERS = 4
# Rows of 512 pieces: masking 8 at once takes twice the time a row that 32 take.
_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a step.

    Attributes:
        micro_batches: what `collate` gives, one per accumulation step; equally many on every rank, of unequal
            numbers of rows.
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


@dataclass(frozen=True, eq=False)
class Feed:
    """Training batches of one rank, by step number.

    Attributes:
        rows: what is trained on.
        layout: how rows become tensors.
        masking: what is hidden.
        seed: of the masks, and of the plain order.
        global_batch: rows of a step over all ranks.
        micro_batch: rows at once on one rank, on average; see `division.share`.
        rank: of these batches.
        world_size: ranks.
        order: which rows a step has; plain if None.
    """

    rows: RowSource
    _: KW_ONLY
    layout: Layout
    masking: Masking
    seed: int
    global_batch: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1
    order: Order | None = None

    def __post_init__(self) -> None:
        """Check that there are rows and that the batch divides."""
        if self.order is None:
            if self.rows.num_rows == 0:
                raise ValueError("there are no rows to train on: check the sources and what `clean` dropped")
            object.__setattr__(self, "order", PlainOrder(self.rows.num_rows, self.seed))
        check_rank(self.rank, self.world_size)
        check_division(self.global_batch, micro_batch=self.micro_batch, world_size=self.world_size)

    def load(self, step: int) -> StepBatch:
        """Prepare this rank's part of a step; steps count from 0 and may be asked for in any order."""
        assert self.order is not None
        row_ids, epochs = self.order.rows_of_step(step, self.global_batch)
        parts = share(
            self.rows.lengths[row_ids],
            slots=self._slots,
            micro_batch=self.micro_batch,
            rank=self.rank,
            world_size=self.world_size,
        )
        batches = []
        for group in _group(parts):
            own = np.concatenate(group)
            ends = np.cumsum([len(part) for part in group]).tolist()
            batches += _load(
                self.rows, self.layout, self.masking, row_ids[own], epochs[own], self.seed, ends=ends
            )
        return StepBatch(
            micro_batches=batches,
            num_targets=sum(int((batch["labels"] != NOT_A_TARGET).sum()) for batch in batches),
            num_rows=sum(len(part) for part in parts),
            num_pieces=sum(int(batch["attention_mask"].sum()) for batch in batches),
            num_slots=sum(batch["labels"].numel() for batch in batches),
            epoch=self.order.count_epochs((step + 1) * self.global_batch),
        )

    def steps(
        self,
        first: int,
        stop: int,
        *,
        num_workers: int | None = None,
        num_ahead: int | None = None,
        pin: bool = False,
    ) -> Generator[StepBatch, None, None]:
        """Give steps first to stop - 1 in order, prepared ahead by threads.

        An error while a step is prepared is raised where that step would have been given. The threads end
        with the generator: at the last step, on `close()`, or when nothing refers to it any more.

        Args:
            first: number of the first step.
            stop: number behind the last step.
            num_workers: threads; 0: a step is prepared when it is asked for. None: `count_workers()`.
            num_ahead: most steps that are prepared and not taken yet. None: one more than there are threads.
            pin: put tensors into page-locked memory, from where a GPU copies in the background.
        """
        load = self._load_pinned if pin else self.load
        num_workers = count_workers() if num_workers is None else num_workers
        num_ahead = num_workers + 1 if num_ahead is None else num_ahead
        if num_workers < 0 or (num_workers and num_ahead < 1):
            raise ValueError(
                f"num_workers is {num_workers} and num_ahead {num_ahead}: give 0 or more threads, and at "
                "least one step ahead for them to work on"
            )
        if num_workers == 0:
            return (load(step) for step in range(first, stop))
        return self._load_ahead(load, range(first, stop), num_workers, num_ahead)

    @cached_property
    def _slots(self) -> np.ndarray:
        return tabulate_slots(self.layout.count_slots, self.layout.row_length)

    def _load_pinned(self, step: int) -> StepBatch:
        batch = self.load(step)
        return replace(batch, micro_batches=[pin_batch(part) for part in batch.micro_batches])

    @staticmethod
    def _load_ahead(
        load: Callable[[int], StepBatch], steps: range, num_workers: int, num_ahead: int
    ) -> Generator[StepBatch, None, None]:
        pool = ThreadPoolExecutor(num_workers, thread_name_prefix="feed", **_follow_device())
        ahead: deque[Future[StepBatch]] = deque()
        waiting = iter(steps)
        try:
            for _ in steps:
                ahead.extend(pool.submit(load, step) for step in islice(waiting, num_ahead + 1 - len(ahead)))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class FrozenBatches:
    """Evaluation batches of one rank: every row once over all ranks, and the same masks every time.

    Iterating gives (number, batch); the numbers of all ranks together are 0 to num_batches - 1, so ranks may
    differ by one batch.

    Attributes:
        num_batches: batches of all ranks, without those that only keep ranks together.
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
        is_even: bool = False,
    ) -> None:
        """Sort the rows by length, longest first, and cut them; the last batch may be smaller.

        With is_even every rank has equally many batches, as ranks need that exchange weights in each forward
        pass (ZeRO-3): one that would have a batch less ends with (None, a batch without targets).
        """
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: it must be at least 1")
        check_rank(rank, world_size)
        self.num_batches = -(-rows.num_rows // micro_batch)
        self._parts = deal(rows.lengths, micro_batch=micro_batch, rank=rank, world_size=world_size)
        self._num_idle = -(-self.num_batches // world_size) - len(self._parts) if is_even else 0
        self._rows = rows
        self._layout = layout
        self._masking = masking
        self._seed = seed

    def __len__(self) -> int:
        return len(self._parts) + self._num_idle

    def __iter__(self) -> Iterator[tuple[int | None, Batch]]:
        for number, row_ids in self._parts:
            yield number, self._load(row_ids)
        for _ in range(self._num_idle):
            batch = self._load(np.array([np.argmin(self._rows.lengths)]))
            yield None, batch | {"labels": torch.full_like(batch["labels"], NOT_A_TARGET)}

    def _load(self, row_ids: np.ndarray) -> Batch:
        epochs = np.full(len(row_ids), FROZEN_EPOCH)
        (batch,) = _load(
            self._rows, self._layout, self._masking, row_ids, epochs, self._seed, ends=[len(row_ids)]
        )
        return batch


def count_workers(num_ranks: int = 1) -> int:
    """Give the threads that prepare steps on a machine with so many ranks: its cores shared out, 1 to 4."""
    is_known = hasattr(os, "sched_getaffinity")  # not on macOS
    num_cores = len(os.sched_getaffinity(0)) if is_known else os.cpu_count() or 1
    return max(1, min(_MAX_WORKERS, num_cores // num_ranks))


def pin_batch(batch: Batch) -> Batch:
    """Copy a batch into page-locked memory."""
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to a device; from pinned memory the copy runs while the host goes on."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _follow_device() -> dict[str, Any]:
    """Arguments of a pool whose threads use the GPU of this one; a new thread would open the first GPU."""
    if not torch.cuda.is_initialized():
        return {}
    return {"initializer": torch.cuda.set_device, "initargs": (torch.cuda.current_device(),)}


def _group(parts: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Micro-batches that are masked at once, so that numpy's calls are few for their work."""
    groups: list[list[np.ndarray]] = []
    num_rows = _ROWS_AT_ONCE
    for part in parts:
        if num_rows + len(part) > _ROWS_AT_ONCE:
            groups.append([])
            num_rows = 0
        groups[-1].append(part)
        num_rows += len(part)
    return groups


def _load(
    source: RowSource,
    layout: Layout,
    masking: Masking,
    row_ids: np.ndarray,
    epochs: np.ndarray,
    seed: int,
    *,
    ends: list[int],
) -> list[Batch]:
    """Batches of the named rows; `ends` says behind which row each ends."""
    rows = source.take(row_ids)
    hidden = hide(rows, masking, row_ids=row_ids, epochs=epochs, seed=seed)
    batches = []
    for first, stop in zip([0, *ends[:-1]], ends, strict=True):
        span = slice(int(rows.offsets[first]), int(rows.offsets[stop]))
        part = Hidden(hidden.inputs[span], hidden.is_target[span])
        batches.append(collate(rows.cut(first, stop), part, layout))
    return batches
