"""The census: the words of a corpus, found by one rule whatever the tokenizer, and counted in bounded memory.

A word is a run of letters, digits and their marks; underscores inside it join. Punctuation ends it, and in a
script without spaces each character is a word.

Shapes: C code points, W words, U different words.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipes.documents import build_column_from_bytes, flatten_code_points, pc
from data_pipes.tokens.characters import CONNECTOR, MARK, OTHER, SPACE, UNSPACED, build_class_table
from data_pipes.tokens.words import split_columns

# Different words that are kept (about 60 bytes each); when there are more, the rarer half goes.
MAX_WORDS = 2_000_000
_HYPHENS = tuple(map(ord, "-\u00ad\u2010\u2011"))
_JOINERS = (*_HYPHENS, ord("'"), ord("\u2019"))


@dataclass(frozen=True)
class Words:
    """W words of some documents.

    Attributes:
        texts: Arrow strings [W].
        starts: int64 [W], first code point in all documents together.
        ends: int64 [W], half-open.
        code_points: uint32 [C], the documents end to end, one bar after each.
        classes: uint8 [C], see characters.
    """

    texts: pa.StringArray
    starts: np.ndarray
    ends: np.ndarray
    code_points: np.ndarray
    classes: np.ndarray


def read_words(columns: Iterable[pa.StringArray]) -> Iterator[Words]:
    """The words of a corpus, about a million characters at a time."""
    for column in columns:
        for texts in split_columns(column):
            yield find_words(texts)


def find_words(texts: pa.StringArray) -> Words:
    """Find the words of some documents, in order."""
    code_points, offsets = flatten_code_points(texts)
    # The bars keep words and phrases from reaching into the next document.
    code_points_C = np.insert(code_points, offsets[1:], ord("|"))
    classes_C = build_class_table()[code_points_C]
    starts, ends = _trim(classes_C, *_find_runs(classes_C))
    return Words(_cut(code_points_C, starts, ends), starts, ends, code_points_C, classes_C)


def _find_runs(classes_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of what may stand in a word; a character of a script without spaces is one with its marks."""
    is_mark_C = classes_C == MARK
    is_unspaced_C = classes_C == UNSPACED
    # Class of the last character that is no mark, up to and with each place.
    solid_C = np.maximum.accumulate(np.where(is_mark_C, 0, np.arange(len(classes_C))))
    after_unspaced_C = _shift(is_unspaced_C[solid_C])
    is_inner_C = np.isin(classes_C, (OTHER, CONNECTOR, MARK, UNSPACED))
    before_C = _shift(is_inner_C)
    is_border_C = (is_inner_C != before_C) | is_unspaced_C | (after_unspaced_C & ~is_mark_C)
    borders = np.flatnonzero(is_border_C)
    is_run = is_inner_C[borders]
    # The last character is a bar, so each run has a border behind it.
    return borders[is_run], np.append(borders, len(classes_C))[1:][is_run]


def _shift(flags_C: np.ndarray) -> np.ndarray:
    return np.append(False, flags_C)[: len(flags_C)]


def _trim(classes_C: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without connectors and stray marks at the front, and connectors at the end; nothing else is no word."""
    if not len(starts):
        return starts, ends
    positions = np.arange(len(classes_C))
    is_solid_C = (classes_C == OTHER) | (classes_C == UNSPACED)
    next_solid_C = np.minimum.accumulate(np.where(is_solid_C, positions, len(classes_C))[::-1])[::-1]
    last_kept_C = np.maximum.accumulate(np.where(classes_C == CONNECTOR, -1, positions))
    firsts, lasts = next_solid_C[starts], last_kept_C[ends - 1] + 1
    is_word = firsts < lasts
    return firsts[is_word], lasts[is_word]


def _cut(code_points_C: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> pa.StringArray:
    """The words as Arrow strings."""
    lengths = ends - starts
    firsts = np.append(0, np.cumsum(lengths))[:-1]
    positions = np.arange(lengths.sum()) + np.repeat(starts - firsts, lengths)
    letters = code_points_C[positions].astype("<u4")
    sizes = 1 + (letters >= 0x80).astype(np.int64) + (letters >= 0x800) + (letters >= 0x10000)
    num_bytes = np.add.reduceat(sizes, firsts) if len(firsts) else sizes
    data = np.frombuffer(letters.tobytes().decode("utf-32-le").encode("utf-8"), np.uint8)
    return build_column_from_bytes(data, num_bytes)


@dataclass(frozen=True)
class WordCounts:
    """U different words.

    Attributes:
        texts: Arrow strings [U], sorted.
        counts: int64 [U].
        num_tied: int64 [U], how often a hyphen or an apostrophe ties the word to a neighbour.
        num_dotted: int64 [U], how often a full stop follows.
        num_words: words in all.
        num_forgotten: most that a count may be too low, since rare words had to be dropped on the way.
    """

    texts: pa.StringArray
    counts: np.ndarray
    num_tied: np.ndarray
    num_dotted: np.ndarray
    num_words: int
    num_forgotten: int


class WordCounter:
    """Counts words chunk by chunk and keeps the most frequent (lossy counting, Manku and Motwani 2002)."""

    def __init__(self, max_words: int = MAX_WORDS):
        self._max_words = max_words
        self._table = pa.table(
            {"text": pa.array([], pa.large_string())}
            | {name: pa.array([], pa.int64()) for name in ("counts", "tied", "dotted")}
        )
        self._num_words = self._num_forgotten = 0

    def add(self, words: Words, texts: pa.StringArray) -> None:
        """Count some words under the names `texts` [W] (their own, or those in lower case)."""
        encoded = pc.dictionary_encode(texts)
        numbers = encoded.indices.to_numpy()
        is_tied, is_dotted = _find_neighbours(words)

        def count(chosen: np.ndarray) -> np.ndarray:
            return np.bincount(chosen, minlength=len(encoded.dictionary)).astype(np.int64)

        part = pa.table(
            {
                "text": encoded.dictionary.cast(pa.large_string()),
                "counts": count(numbers),
                "tied": count(numbers[is_tied]),
                "dotted": count(numbers[is_dotted]),
            }
        )
        self._num_words += len(numbers)
        sums = [(name, "sum") for name in part.column_names[1:]]
        grouped = pa.concat_tables([self._table, part]).group_by("text", use_threads=False).aggregate(sums)
        self._table = self._forget(
            grouped.select(["text", *(f"{name}_sum" for name, _ in sums)]).rename_columns(part.column_names)
        )

    def _forget(self, table: pa.Table) -> pa.Table:
        if table.num_rows <= self._max_words:
            return table
        counts = table["counts"].to_numpy()
        # At least half goes, so that this is rare; words of one count go together.
        floor = int(np.partition(counts, table.num_rows // 2)[table.num_rows // 2])
        self._num_forgotten += floor
        return table.filter(pa.array(counts > floor))

    def finish(self) -> WordCounts:
        """What was counted."""
        table = self._table.sort_by("text")
        counts, tied, dotted = (table[name].to_numpy() for name in ("counts", "tied", "dotted"))
        texts = pa.concat_arrays([pa.array([], pa.string()), *table["text"].cast(pa.string()).chunks])
        return WordCounts(texts, counts, tied, dotted, self._num_words, self._num_forgotten)


def _find_neighbours(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """Whether a joiner ties each word to another (or a hyphen is left), and whether a dot follows, bool [W].

    A double hyphen is a dash and ties nothing.
    """
    blanks = np.full(2, ord(" "), np.uint32)
    padded = np.concatenate((blanks, words.code_points, blanks))
    classes = np.concatenate((np.full(2, SPACE), words.classes, np.full(2, SPACE)))
    is_letter = (classes == OTHER) | (classes == UNSPACED)
    first, behind = words.starts + 2, words.ends + 2
    before, after = padded[first - 1], padded[behind]
    is_tied = np.isin(before, _JOINERS) & is_letter[first - 2]
    is_tied |= np.isin(after, _JOINERS) & is_letter[behind + 1]
    is_tied |= np.isin(after, _HYPHENS) & (classes[behind + 1] == SPACE)
    return is_tied, after == ord(".")
