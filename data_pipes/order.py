"""Order: which rows a step trains on, by arithmetic alone.

An epoch's order is a keyed permutation of the row numbers, computed where it is needed: a Feistel network
(Luby and Rackoff 1988) on the next even power of two, walked until it lands inside (Black and Rogaway
2002). Nothing is stored, so 255 M rows cost no memory and the whole data position is the step number.

Samples are numbered through all epochs and step t takes the next G of them, from t * G on. An order says
which row a sample is: `PlainOrder` here, `Mixture` (mixture.py) for sources with weights, `StreamOrder`
(stream_order.py) for rows that are still arriving.

Shapes: G rows in a step (the global batch), over all ranks and micro-batches.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_pipes.masks.draws import Stream, draw_at, draw_rows, mix

# On 4 values, chi2 over all permutations is 17 times its mean after 6 rounds, 2.6 times after 8, and within
# chance after 10. What stays, and does no harm: a permutation of 16 or more values by a network is even.
_NUM_ROUNDS = 12


class Order(Protocol):
    """Which row each sample of a training run is; a pure function, so threads may share one."""

    def rows_of_step(self, step: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Name the rows of a step and the epoch that each is seen in, int64 [G] and int64 [G]."""
        ...

    def count_epochs(self, num_samples: int) -> float:
        """Give the passes through the data that the first num_samples samples make."""
        ...


@dataclass(frozen=True)
class PlainOrder:
    """Every row once in each epoch, in an order of its own."""

    num_rows: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse an order of nothing."""
        check_positive("num_rows", self.num_rows)

    def rows_of_step(self, step: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Name the rows of a step and the epoch that each is seen in, int64 [G] and int64 [G].

        A batch may run across an epoch's end; no row is dropped or seen twice in an epoch.
        """
        epochs, places = np.divmod(samples_of_step(step, global_batch), self.num_rows)
        return permute(places, num_rows=self.num_rows, seed=self.seed, epochs=epochs), epochs

    def count_epochs(self, num_samples: int) -> float:
        """Give the passes through the rows that the first num_samples samples make."""
        return num_samples / self.num_rows


def rows_of_step(step: int, *, global_batch: int, num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Name the rows of a step in the plain order and their epochs, int64 [G] and int64 [G]."""
    return PlainOrder(num_rows, seed).rows_of_step(step, global_batch)


def samples_of_step(step: int, global_batch: int) -> np.ndarray:
    """Number the samples of a step, int64 [G]; steps count from 0."""
    check_positive("global_batch", global_batch)
    if step < 0:
        raise ValueError(f"step is {step}: steps count from 0")
    return step * global_batch + np.arange(global_batch, dtype=np.int64)


def permute(
    indices: np.ndarray,
    *,
    num_rows: int,
    seed: int,
    epochs: np.ndarray | int,
    parts: np.ndarray | int = 0,
) -> np.ndarray:
    """Map places in an epoch's order to row numbers, int64; one to one on [0, num_rows) for each key.

    Args:
        indices: integers in [0, num_rows), any shape [G].
        num_rows: size of the permutation, at most 2**62.
        seed: key, with epoch and part, of the permutation.
        epochs: the epoch of each index, [G] or one for all.
        parts: the part of the corpus that each index is in, [G] or one for all.
    """
    check_positive("num_rows", num_rows)
    values = np.array(indices, dtype=np.uint64)
    if values.size and int(values.max()) >= num_rows:
        raise ValueError(f"index {int(values.max())} is outside [0, {num_rows}): give places of one epoch")
    half_bits = max(1, ((num_rows - 1).bit_length() + 1) // 2)
    flat = values.reshape(-1)
    keys, key_of = _list_keys(seed, epochs, parts, values.shape)
    outside = np.arange(flat.size)
    while outside.size:
        own_keys = keys if key_of is None else keys[:, key_of[outside]]
        flat[outside] = _encrypt(flat[outside], own_keys, half_bits)
        outside = outside[flat[outside] >= num_rows]
    return flat.reshape(values.shape).astype(np.int64)


def check_positive(name: str, value: int) -> None:
    """Raise ValueError unless a count is at least 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be at least 1")


def _list_keys(
    seed: int, epochs: np.ndarray | int, parts: np.ndarray | int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Give the keys of each run of equal (epoch, part), uint64 [rounds, runs], and the run of each index.

    A step has one run or two, so its keys are a few numbers. One run needs no numbering: None.
    """
    flat_epochs, flat_parts = (
        np.broadcast_to(np.asarray(key, np.int64), shape).reshape(-1) for key in (epochs, parts)
    )
    begins = (flat_epochs[1:] != flat_epochs[:-1]) | (flat_parts[1:] != flat_parts[:-1])
    firsts = np.concatenate(([0], np.flatnonzero(begins) + 1))[: flat_epochs.size]
    states = draw_rows(seed, flat_epochs[firsts], flat_parts[firsts], Stream.ORDER)
    keys = draw_at(states, np.arange(_NUM_ROUNDS)[:, None])
    return keys, None if len(firsts) == 1 else np.concatenate(([0], np.cumsum(begins)))


def _encrypt(values: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    half = np.uint64(half_bits)
    low_bits = np.uint64((1 << half_bits) - 1)
    left, right = values >> half, values & low_bits
    for key in keys:
        left, right = right, left ^ (mix(right + key) & low_bits)
    return (left << half) | right
