"""Shingles: each run of k words or characters of a text as one 64-bit number.

Shapes: D texts, N code points in all of them, T shingles.
"""

import numpy as np
import pyarrow as pa

from data_pipes.documents import flatten_code_points, pc
from data_pipes.duplication.hashes import hash_spans, hash_texts, mix_bits

# What parts words: ASCII but letters and digits, blanks, U+2000 to U+206F; alike in every Unicode version.
# The last place stands for all characters behind the table.
IS_SEPARATOR = np.zeros(0x3002, bool)
IS_SEPARATOR[:128] = [not chr(code).isalnum() for code in range(128)]
IS_SEPARATOR[[0x85, 0xA0, 0x1680, 0x3000]] = True
IS_SEPARATOR[0x2000:0x2070] = True


def find_shingles(texts: pa.StringArray, size: int, of_words: bool) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of each text in lower case, every one as often as it is there.

    A text with fewer words (or characters) than a shingle has one of all of them; one with no word at all has
    its own hash.

    Args:
        texts: [D].
        size: words or characters in a shingle.
        of_words: blanks and punctuation part words and do not count; else all characters count.

    Returns:
        Hashes uint64 [T] and offsets int64 [D + 1] into them.
    """
    texts = pc.utf8_lower(texts)
    code_points, offsets = flatten_code_points(texts)
    items, item_offsets = code_points, offsets
    if of_words:
        starts, ends = _find_words(code_points, offsets)
        items = hash_spans(code_points, starts, ends)
        item_offsets = np.searchsorted(starts, offsets)
    hashes, offsets = _combine(items, item_offsets, size)
    empty = np.flatnonzero(np.diff(offsets) == 0)
    if len(empty):
        hashes = np.insert(hashes, offsets[empty], hash_texts(texts)[empty])
        offsets = offsets + np.searchsorted(empty, np.arange(len(offsets)))
    return hashes, offsets


def _find_words(code_points: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_word = ~IS_SEPARATOR[np.minimum(code_points, np.uint32(len(IS_SEPARATOR) - 1))]
    is_begin = np.zeros(len(code_points) + 1, bool)
    is_begin[offsets] = True
    is_beside = np.concatenate(([False], is_word, [False]))
    starts = np.flatnonzero(is_word & (~is_beside[:-2] | is_begin[:-1]))
    ends = np.flatnonzero(is_word & (~is_beside[2:] | is_begin[1:])) + 1
    return starts, ends


def _combine(items: np.ndarray, offsets: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash each run of `size` items inside of a text."""
    ends = np.repeat(offsets[1:], np.diff(offsets))
    places = np.arange(len(items))
    factors = mix_bits(np.arange(size, dtype=np.uint64)) | np.uint64(1)
    totals = np.zeros(len(items), np.uint64)
    for step, factor in enumerate(factors):
        num_pairs = max(0, len(items) - step)
        added = items[step:].astype(np.uint64) * factor
        # Behind the end of a short text there is nothing.
        added *= places[step:] < ends[:num_pairs]
        totals[:num_pairs] += added
    is_whole = places + size <= ends
    is_whole[offsets[:-1][np.diff(offsets) > 0]] = True
    counts = np.concatenate(([0], np.cumsum(is_whole)))
    return mix_bits(totals[is_whole]), counts[offsets]
