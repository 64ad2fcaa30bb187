"""Hashes of texts: 64 bits, the same on every machine and for ever.

Shapes: D texts, N code points in all of them.
"""

import numpy as np
import pyarrow as pa

from data_pipes.documents import flatten_code_points

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
# Code points need 21 bits; the position goes above them.
POSITION_BITS = np.uint64(21)
# So many code points with their two 64-bit columns stay in a core's second-level cache.
BLOCK = 1 << 15


def mix_bits(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014) on uint64 of any shape."""
    mixed = values + GOLDEN_GAMMA
    _finish_mixing(mixed, np.empty_like(mixed))
    return mixed


def _finish_mixing(values: np.ndarray, scratch: np.ndarray) -> None:
    """Mix in place what GOLDEN_GAMMA has been added to."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(values, np.uint64(shift), out=scratch)
        np.bitwise_xor(values, scratch, out=values)
        np.multiply(values, np.uint64(factor), out=values)
    np.right_shift(values, np.uint64(31), out=scratch)
    np.bitwise_xor(values, scratch, out=values)


def hash_texts(texts: pa.StringArray) -> np.ndarray:
    """A 64-bit hash of each text, uint64 [D]; it must never change, or splits would.

    The sum over characters of mix(code point + position * 2^21), with the length, mixed once more.
    """
    code_points, offsets = flatten_code_points(texts)
    return hash_spans(code_points, offsets[:-1], offsets[1:])


def hash_spans(code_points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The hash of each span of code points as `hash_texts` would give it, uint64 [spans].

    Args:
        code_points: uint32 [N].
        starts: int64, ascending; spans do not overlap, what lies between them is left out.
        ends: half-open.
    """
    lengths = ends - starts
    sums = np.zeros(len(starts), np.uint64)
    filled = np.flatnonzero(lengths)
    if len(filled):
        bounds = np.column_stack((starts[filled], ends[filled])).ravel()
        mixed = _mix_characters(code_points[: bounds[-1]], starts[filled])
        # Every second sum is of what lies between two spans.
        sums[filled] = np.add.reduceat(mixed, bounds[:-1])[::2]
    return mix_bits(sums + lengths.astype(np.uint64) * GOLDEN_GAMMA)


def _mix_characters(code_points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """mix(code point + position * 2^21), the position counted from the last start; uint64 [N]."""
    num_points = len(code_points)
    mixed = np.empty(num_points, np.uint64)
    # What lies before the first start is in no span: its positions only must not be missing.
    begins = np.concatenate(([0], starts))
    cuts = np.concatenate((starts, [num_points]))
    scratch = np.empty(min(BLOCK, num_points), np.uint64)
    for at in range(0, num_points, BLOCK):
        end = min(at + BLOCK, num_points)
        block, rest = mixed[at:end], scratch[: end - at]
        first, last = np.searchsorted(cuts, (at, end - 1), side="right")
        counts = np.minimum(cuts[first : last + 1], end) - np.maximum(begins[first : last + 1], at)
        origins = np.repeat(begins[first : last + 1], counts)
        np.subtract(np.arange(at, end), origins, out=block.view(np.int64))
        np.left_shift(block, POSITION_BITS, out=block)
        np.bitwise_or(block, code_points[at:end], out=block)
        np.add(block, GOLDEN_GAMMA, out=block)
        _finish_mixing(block, rest)
    return mixed
