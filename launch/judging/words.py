"""Words of rows by their text, whatever pieces they are cut into, and how often a corpus holds them.

A word's hash is a polynomial in its characters modulo 2^64, so that it is the same sum of its pieces however
these cut it: `fossil` after a space and after a bracket is one word.

Shapes: N pieces, B words (special pieces included), U different words.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipes.masking import FROZEN_EPOCH
from data_pipes.masks.draws import draw, mix
from data_pipes.masks.units import find_words
from data_pipes.rows import Rows, RowSource
from data_pipes.tokenize import BYTE_LEVEL_MARKS, SPACE_MARK

# Odd, so that it has an inverse and no character is lost however long the word.
_BASE = np.array(0xD1342543DE82EF95, np.uint64)
_CHUNK_PIECES = 1 << 20
# Apart from the numbers of data_pipes.masks.draws.Stream, which are small.
_COUNTING = 101


@dataclass(frozen=True)
class WordHasher:
    """Hashes of the texts of words.

    Attributes:
        hashes: uint64 [pieces of the tokenizer], of the text of each as if it began a word; special ones: 0.
        sizes: int64, the characters of each, marks of a space left out.
        is_special: bool, pieces that stand for no text, or for any that is not known.
        has_letters: bool, pieces with a letter or a digit.
    """

    hashes: np.ndarray
    sizes: np.ndarray
    is_special: np.ndarray
    has_letters: np.ndarray

    @classmethod
    def build(cls, tokenizer: Any) -> "WordHasher":
        """Read the pieces of a fast tokenizer."""
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        prefix = state["model"].get("continuing_subword_prefix") or ""
        marks = SPACE_MARK
        if "ByteLevel" in json.dumps([state[part] for part in ("normalizer", "pre_tokenizer", "decoder")]):
            marks += BYTE_LEVEL_MARKS
        specials = set(tokenizer.all_special_ids)
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        texts = [
            "" if number in specials else (piece or "").strip(marks).removeprefix(prefix)
            for number, piece in enumerate(pieces)
        ]
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        letters = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        ends = sizes.cumsum()
        places = np.arange(len(letters)) - (ends - sizes).repeat(sizes)
        values = mix(letters.astype(np.uint64) + np.uint64(1)) * _list_powers(sizes)[places]
        sums = np.append(np.uint64(0), values.cumsum(dtype=np.uint64))
        is_special = np.isin(np.arange(len(texts)), list(specials))
        has_letters = np.array([any(map(str.isalnum, text)) for text in texts], bool)
        return cls(sums[ends] - sums[ends - sizes], sizes, is_special, has_letters)

    def hash(self, pieces: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """The hash of each word, uint64 [B]; bounds int64 [B + 1] of words that together are all pieces."""
        if len(bounds) < 2:
            return np.zeros(0, np.uint64)
        sizes = self.sizes.take(pieces, mode="clip")
        before = sizes.cumsum() - sizes
        places = before - before[bounds[:-1]].repeat(np.diff(bounds))
        values = self.hashes.take(pieces, mode="clip") * _list_powers(places)[places]
        return np.add.reduceat(values, bounds[:-1])


def _list_powers(sizes: np.ndarray) -> np.ndarray:
    """Powers of the base up to the greatest of these."""
    powers = np.full(int(sizes.max(initial=0)) + 1, _BASE, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def count_words(
    source: RowSource,
    hasher: WordHasher,
    wanted: np.ndarray,
    *,
    seed: int,
    max_pieces: int,
    part: tuple[int, int] = (0, 1),
) -> tuple[np.ndarray, float]:
    """How often rows hold the words of these hashes, float64 [U], and what all counts are to be scaled by.

    Of rows with more than max_pieces, a random share of stretches is counted. The parts add up to the whole
    exactly, being integers; scaled before they are added they would not.

    Args:
        source: the rows.
        hasher: of their words.
        wanted: uint64 [U], ascending, each once.
        seed: of the choice of stretches.
        max_pieces: about so many pieces are read.
        part: (rank, ranks) that the work is dealt to.
    """
    counts = np.zeros(len(wanted))
    if not len(wanted) or not source.num_rows:
        return counts, 1.0
    ends = np.cumsum(source.lengths, dtype=np.int64)
    share = min(1.0, max_pieces / max(1, int(ends[-1])))
    bounds = np.searchsorted(ends, np.arange(0, ends[-1], _CHUNK_PIECES))
    bounds = [*np.unique(bounds).tolist(), source.num_rows]
    numbers = np.arange(len(bounds) - 1)
    num_chosen = max(1, round(share * len(numbers)))
    chosen = np.argsort(draw(seed, FROZEN_EPOCH, numbers, 0, _COUNTING), kind="stable")[:num_chosen]
    for number in chosen[part[0] :: part[1]].tolist():
        rows = source.take(np.arange(bounds[number], bounds[number + 1]))
        found = hasher.hash(rows.pieces, find_words(rows))
        at = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
        counts += np.bincount(at[wanted[at] == found], minlength=len(wanted))
    return counts, len(numbers) / num_chosen


def list_words(source: RowSource, hasher: WordHasher) -> np.ndarray:
    """The hashes of all words of some rows, ascending, each once, uint64."""
    rows = take_all(source)
    return np.unique(hasher.hash(rows.pieces, find_words(rows)))


def take_all(source: RowSource) -> Rows:
    """All rows of a source in memory."""
    return source.take(np.arange(source.num_rows))
