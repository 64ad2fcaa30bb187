"""Random draws without state: equal keys give equal bits on every machine, in any order and any batch.

Each key in turn moves a splitmix64 generator (Steele, Lea and Flood 2014) by that many steps and restarts
it from what it gives there. Changing any of this changes every order and every mask: the tests pin values.
"""

from enum import IntEnum
from functools import lru_cache
from typing import TypeAlias

import numpy as np

Integers: TypeAlias = "int | np.ndarray"

# Arrays of no dimension: numpy reads them a third faster than its own scalars, which tells in short batches.
_STEP = np.array(0x9E3779B97F4A7C15, np.uint64)
_FIRST_FACTOR = np.array(0xBF58476D1CE4E5B9, np.uint64)
_SECOND_FACTOR = np.array(0x94D049BB133111EB, np.uint64)
_SHIFT_11, _SHIFT_27, _SHIFT_30, _SHIFT_31, _SHIFT_32 = (
    np.array(bits, np.uint64) for bits in (11, 27, 30, 31, 32)
)
_ONE = np.array(1, np.uint64)
_ALL_BITS = (1 << 64) - 1


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent. Numbers are never used again."""

    ORDER = 1
    HIDDEN_COUNT = 2
    HIDDEN_WORD = 3
    REPLACEMENT = 4
    RANDOM_PIECE = 5
    SPAN_START = 6
    SPAN_SLOT = 7
    SPAN_TURN = 8


def draw(seed: int, epoch: Integers, row: Integers, index: Integers, stream: int) -> np.ndarray:
    """Draw 64 random bits for each combination of keys, uint64 of the broadcast shape."""
    return draw_at(draw_rows(seed, epoch, row, stream), index)


def draw_rows(seed: int, epoch: Integers, row: Integers, stream: int) -> np.ndarray:
    """Draw the part that all indices of a row share, uint64; `draw_at` completes it."""
    return _absorb(_absorb(_absorb_seed(seed, (stream,))[0], epoch), row)


def draw_streams(seed: int, epochs: Integers, rows: np.ndarray, streams: tuple[int, ...]) -> np.ndarray:
    """Do `draw_rows` for several streams at once, uint64 [streams, rows]."""
    if isinstance(epochs, np.ndarray) and epochs.ndim and len(epochs) and (epochs == epochs[0]).all():
        # The usual case, and half of the work in a short batch.
        epochs = int(epochs[0])
    if isinstance(epochs, int):
        return _absorb(_absorb_epoch(seed, epochs, streams), rows)
    return _absorb(_absorb(_absorb_seed(seed, streams)[:, None], epochs), rows)


def draw_at(row_draws: np.ndarray, index: Integers) -> np.ndarray:
    """Complete the draws of `draw_rows` with an index, uint64 of the broadcast shape."""
    return _absorb(row_draws, index)


def count_from(row_draws: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Change draws of `draw_rows` so that `draw_at` takes index + first for an index, uint64."""
    return row_draws - firsts.astype(np.uint64) * _STEP


def as_unit(draws: np.ndarray) -> np.ndarray:
    """Map draws to float64 in [0, 1), from their upper 53 bits."""
    return (draws >> _SHIFT_11) * 2.0**-53


def as_below(draws: np.ndarray, limit: Integers) -> np.ndarray:
    """Map draws to int64 in [0, limit), limit (or one a draw) at most 2**32, from their upper 32 bits."""
    return (((draws >> _SHIFT_32) * np.asarray(limit).astype(np.uint64)) >> _SHIFT_32).astype(np.int64)


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values in place, one to one; the finaliser of splitmix64."""
    shifted = np.empty(values.shape, np.uint64)
    np.right_shift(values, _SHIFT_30, shifted)
    np.bitwise_xor(values, shifted, values)
    np.multiply(values, _FIRST_FACTOR, values)
    np.right_shift(values, _SHIFT_27, shifted)
    np.bitwise_xor(values, shifted, values)
    np.multiply(values, _SECOND_FACTOR, values)
    np.right_shift(values, _SHIFT_31, shifted)
    np.bitwise_xor(values, shifted, values)
    return values


@lru_cache(maxsize=64)
def _absorb_seed(seed: int, streams: tuple[int, ...]) -> np.ndarray:
    state = _absorb(_absorb(np.zeros((), np.uint64), seed), np.array(streams))
    state.flags.writeable = False
    return state


@lru_cache(maxsize=64)
def _absorb_epoch(seed: int, epoch: int, streams: tuple[int, ...]) -> np.ndarray:
    state = _absorb(_absorb_seed(seed, streams)[:, None], epoch)
    state.flags.writeable = False
    return state


def _absorb(state: np.ndarray, key: Integers) -> np.ndarray:
    if isinstance(key, int):
        key = np.asarray(key & _ALL_BITS, np.uint64)
    numbers = key.view(np.uint64) if key.dtype == np.int64 else key.astype(np.uint64)
    # Operators on 0-d arrays give scalars, and scalars warn when they wrap: stay with arrays.
    steps = np.asarray(np.add(numbers, _ONE))
    np.multiply(steps, _STEP, steps)
    return mix(np.asarray(np.add(steps, state)))
