"""Random draws without state: equal keys give equal bits on every machine, in any order and any batch.

Each key in turn moves a splitmix64 generator (Steele, Lea and Flood 2014) by that many steps and restarts
it from what it gives there. Changing any of this changes every order and every mask: the tests pin values.
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np

Integers: TypeAlias = "int | np.ndarray"

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_ALL_BITS = (1 << 64) - 1


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent. Numbers are never used again."""

    ORDER = 1
    HIDDEN_COUNT = 2
    HIDDEN_WORD = 3
    REPLACEMENT = 4
    RANDOM_PIECE = 5


def draw(seed: int, epoch: Integers, row: Integers, index: Integers, stream: int) -> np.ndarray:
    """Draw 64 random bits for each combination of keys, uint64 of the broadcast shape."""
    return draw_at(draw_rows(seed, epoch, row, stream), index)


def draw_rows(seed: int, epoch: Integers, row: Integers, stream: int) -> np.ndarray:
    """Draw the part that all indices of a row share, uint64; `draw_at` completes it."""
    state = _absorb(_absorb(np.zeros((), np.uint64), seed), stream)
    return _absorb(_absorb(state, epoch), row)


def draw_at(row_draws: np.ndarray, index: Integers) -> np.ndarray:
    """Complete the draws of `draw_rows` with an index, uint64 of the broadcast shape."""
    return _absorb(row_draws, index)


def as_unit(draws: np.ndarray) -> np.ndarray:
    """Map draws to float64 in [0, 1), from their upper 53 bits."""
    return (draws >> np.uint64(11)) * 2.0**-53


def as_below(draws: np.ndarray, limit: int) -> np.ndarray:
    """Map draws to int64 in [0, limit), limit at most 2**32, from their upper 32 bits."""
    return (((draws >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values in place, one to one; the finaliser of splitmix64."""
    values ^= values >> np.uint64(30)
    values *= _FIRST_FACTOR
    values ^= values >> np.uint64(27)
    values *= _SECOND_FACTOR
    values ^= values >> np.uint64(31)
    return values


def _absorb(state: np.ndarray, key: Integers) -> np.ndarray:
    if isinstance(key, int):
        key = np.asarray(key & _ALL_BITS, np.uint64)
    steps = np.asarray(np.asarray(key).astype(np.uint64) * _STEP)
    # Operators on 0-d arrays give scalars, and scalars warn when they wrap: stay with arrays.
    moved = np.asarray(np.add(state, steps))
    return mix(np.asarray(np.add(moved, _STEP)))
