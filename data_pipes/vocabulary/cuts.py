"""Cuts: the pieces of texts with their places, and the pieces of each word.

Shapes: N pieces of some texts, W words of them.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from data_pipes.tokenize import BYTE_LEVEL_MARKS, SPACE_MARK
from data_pipes.vocabulary.census import Words
from data_pipes.vocabulary.identity import find_backend


@dataclass(frozen=True)
class Cut:
    """N pieces of some texts.

    Attributes:
        ids: int64 [N].
        starts: int64 [N], first code point in all texts together.
        ends: int64 [N], half-open.
        is_blank: bool [N], true for pieces that are only a mark of a space.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    is_blank: np.ndarray


class Cutter:
    """Cuts texts into pieces, special ones spelt out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._backend = Tokenizer.from_str(find_backend(tokenizer).to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        vocabulary = self._backend.get_vocab()
        self.num_ids = max(vocabulary.values()) + 1
        self._is_blank = np.zeros(self.num_ids, bool)
        marks = SPACE_MARK + BYTE_LEVEL_MARKS + " "
        self._is_blank[[number for piece, number in vocabulary.items() if not piece.strip(marks)]] = True

    def cut(self, texts: pa.StringArray, text_starts: np.ndarray) -> Cut:
        """The pieces, in code points of all texts together, of which each begins at its text_start."""
        encodings = self._backend.encode_batch(texts.to_pylist(), add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        num_pieces = int(lengths.sum())
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int64, num_pieces)
        flat = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        spans = np.fromiter(flat, np.int64, 2 * num_pieces).reshape(-1, 2)
        spans += np.repeat(text_starts, lengths)[:, None]
        return Cut(ids, spans[:, 0], spans[:, 1], self._is_blank[ids])


@dataclass(frozen=True)
class Fit:
    """W words in terms of one tokenizer's pieces.

    Attributes:
        num_pieces: int64 [W].
        hashes: uint64 [W], of a word's pieces in their order.
        inner_starts: first code points of the pieces after each word's first one.
        inner_words: the number of the word of each of these.
    """

    num_pieces: np.ndarray
    hashes: np.ndarray
    inner_starts: np.ndarray
    inner_words: np.ndarray


def fit_words(cut: Cut, words: Words, keys: np.ndarray) -> Fit:
    """Find each word's pieces: those that overlap it, and the mark of a space right before.

    Args:
        cut: the pieces of some texts.
        words: the words of the same texts.
        keys: random numbers by piece id, uint64, for the hashes.
    """
    solid = np.flatnonzero(~cut.is_blank)
    starts, ends = cut.starts[solid], cut.ends[solid]
    first = np.searchsorted(ends, words.starts, side="right")
    last = np.searchsorted(starts, words.ends, side="left")
    num_solid = last - first
    is_marked = np.append(cut.is_blank, False)[np.append(solid, 0)[first] - 1] & (first < len(solid))
    is_marked &= np.append(solid, 0)[first] > 0
    # A mark before a piece that holds more than the word (a bracket before it) is not the word's.
    is_marked &= np.append(starts, 0)[first] == words.starts
    # Nor is one at the end of the text before.
    is_marked &= np.append(cut.ends, 0)[np.append(solid, 0)[first] - 1] >= words.starts
    words_of = np.repeat(np.arange(len(first)), num_solid)
    within = np.arange(len(words_of)) - np.repeat(np.cumsum(num_solid) - num_solid, num_solid)
    places = np.repeat(first, num_solid) + within
    # Order counts: each key is multiplied by an odd number made of its place.
    mixed = keys[cut.ids[solid[places]]] * (2 * within.astype(np.uint64) + 1)
    totals = np.append(np.uint64(0), np.cumsum(mixed, dtype=np.uint64))
    bounds = np.append(0, np.cumsum(num_solid))
    hashes = totals[bounds[1:]] - totals[bounds[:-1]] + is_marked.astype(np.uint64)
    inner = within > 0
    return Fit(num_solid + is_marked, hashes, starts[places[inner]], words_of[inner])
