"""Weights: listed terms that are hidden more often, or less often, than other words.

A term is known by the pieces of its words, hashed, so that words of rows are looked up all at once and no
text is needed.

Shapes: N pieces, B words (special pieces included) in all rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipes.masks.draws import as_unit, mix
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder

# A term may stand after a space, after punctuation, or at the start of a document; tokenizers that mark
# spaces give it other pieces in each. The comma is a word of its own and is taken off again.
_CONTEXTS = (("", 0), (",", 1), (", ", 1))

_PIECE_BITS = np.array(32, np.uint64)
_LINK = np.array(0x9E3779B97F4A7C15, np.uint64)


@dataclass(frozen=True, eq=False)
class TermWeights:
    """How listed terms are weighted.

    Attributes:
        factor: the weight of a word of a listed term; other words have 1.
        hashes: of the terms of n words, ascending uint64, by n.
        num_terms: terms that can be found in rows.
    """

    factor: float
    hashes: dict[int, np.ndarray]
    num_terms: int

    def __post_init__(self) -> None:
        """Check the factor."""
        if not 0 < self.factor < np.inf:
            raise ValueError(f"the factor of listed terms is {self.factor}: it must be above 0 and finite")

    @classmethod
    def build(cls, terms: Iterable[str], factor: float, encoder: PieceEncoder) -> "TermWeights":
        """Tokenize terms as they stand in texts; `_` in a term stands for itself or for a space."""
        spellings: dict[str, int] = {}
        for number, term in enumerate(terms):
            for spelling in (term, term.replace("_", " ")):
                if words := spelling.split():
                    spellings.setdefault(" ".join(words), number)
        found: dict[int, list[np.ndarray]] = {}
        known: set[int] = set()
        for context, num_extra in _CONTEXTS:
            pieces = encoder.encode(pa.array([context + spelling for spelling in spellings], pa.string()))
            bounds = np.append(pieces.word_starts.nonzero()[0], len(pieces.ids))
            word_offsets = np.searchsorted(bounds, pieces.offsets)
            num_words = np.diff(word_offsets) - num_extra
            words = hash_words(pieces.ids, bounds)
            for length in np.unique(num_words[num_words > 0]).tolist():
                firsts = (word_offsets[:-1] + num_extra)[num_words == length]
                found.setdefault(length, []).append(_hash_runs(words, length)[firsts])
            known.update(np.fromiter(spellings.values(), np.int64, len(spellings))[num_words > 0].tolist())
        hashes = {length: np.unique(np.concatenate(parts)) for length, parts in sorted(found.items())}
        return cls(float(factor), hashes, len(known))

    def find(self, rows: Rows, bounds: np.ndarray) -> np.ndarray:
        """Tell which words belong to a listed term that stands in one document in full, bool [B].

        Args:
            rows: R rows.
            bounds: int64 [B + 1], the first piece of each word and N.
        """
        words = hash_words(rows.pieces, bounds)
        # Where rows and documents begin; a term does not reach over it.
        is_front = np.append(rows.document_starts[bounds[:-1]], True)
        is_front[np.searchsorted(bounds, rows.offsets)] = True
        num_before = is_front.cumsum()
        is_listed = np.zeros(len(words), bool)
        for length, hashes in self.hashes.items():
            runs = _hash_runs(words, length)
            at = np.minimum(np.searchsorted(hashes, runs), len(hashes) - 1)
            lasts = np.arange(length - 1, length - 1 + len(runs))
            is_found = (hashes[at] == runs) & (num_before[lasts] == num_before[: len(runs)])
            firsts = is_found.nonzero()[0]
            for step in range(length):
                is_listed[firsts + step] = True
        return is_listed

    def weigh(self, keys: np.ndarray, is_listed: np.ndarray) -> np.ndarray:
        """Random keys, uint64, with which the smallest ones are a weighted choice without replacement.

        The keys of Efraimidis and Spirakis (2006), -log(1 - u) / weight, mapped back to 64 bits by
        1 - exp(-x), which changes no order and leaves the keys of weight 1 as they are. Listed words are
        hidden about factor times as often as long as few are hidden.
        """
        if self.factor == 1 or not is_listed.any():
            return keys
        units = -np.expm1(np.log1p(-as_unit(keys[is_listed])) / self.factor)
        weighed = keys.copy()
        weighed[is_listed] = np.minimum(units, 1 - 2.0**-53) * 2.0**64
        return weighed


def hash_words(pieces: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """A hash of the pieces of each word, uint64 [B]: the sum of mix(place in the word * 2^32 + piece)."""
    if not len(pieces):
        return np.zeros(0, np.uint64)
    places = np.arange(1, len(pieces) + 1) - bounds[:-1].repeat(np.diff(bounds))
    mixed = places.view(np.uint64) << _PIECE_BITS
    mixed |= pieces
    return np.add.reduceat(mix(mixed), bounds[:-1])


def _hash_runs(words: np.ndarray, length: int) -> np.ndarray:
    """A hash of `length` words from each word on where so many follow, uint64 [B - length + 1]."""
    num_runs = max(0, len(words) - length + 1)
    runs = words[:num_runs].copy()
    for step in range(1, length):
        runs = mix(runs * _LINK) + words[step : step + num_runs]
    return runs
