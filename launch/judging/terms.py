"""Terms: where rows hold the terms of some lists.

A term is known by the texts of its words, so that it is found however the tokenizer cuts it there.

Shapes: N pieces, B words (special pieces included), T terms, S occurrences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipes.masking import FROZEN_EPOCH
from data_pipes.masks.draws import draw, mix
from data_pipes.masks.units import find_words
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder
from launch.judging.passes import Spans
from launch.judging.words import WordHasher

_LINK = np.array(0x9E3779B97F4A7C15, np.uint64)
_CHOOSING = 102


@dataclass(frozen=True)
class Occurrences:
    """S occurrences of terms in some rows, in order.

    Attributes:
        spans: where they are; rows are numbered as they lie.
        terms: int64 [S], numbers of terms.
        num_words: int64 [S].
    """

    spans: Spans
    terms: np.ndarray
    num_words: np.ndarray


@dataclass(frozen=True)
class TermIndex:
    """Terms of several categories.

    Attributes:
        terms: [T] each once, `_` as a space.
        categories: their names.
        membership: bool [categories, T]; a term may be in several.
        runs: {n: (hashes, terms)} of the terms of n words, by ascending uint64 hash.
    """

    terms: tuple[str, ...]
    categories: tuple[str, ...]
    membership: np.ndarray
    runs: dict[int, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def build(
        cls, lists: Mapping[str, Sequence[str]], encoder: PieceEncoder, hasher: WordHasher
    ) -> "TermIndex":
        """Index terms; `_` stands for itself or for a space. With an unknown piece a term is never found."""
        names = {name: [_spell(term) for term in terms] for name, terms in lists.items()}
        number_of = {term: 0 for terms in names.values() for term in terms if term}
        number_of = {term: number for number, term in enumerate(number_of)}
        membership = np.zeros((len(lists), len(number_of)), bool)
        for category, terms in enumerate(names.values()):
            membership[category, [number_of[term] for term in terms if term]] = True
        spellings = dict(number_of)
        for term in (term.strip() for terms in lists.values() for term in terms):
            if _spell(term):
                spellings.setdefault(term, number_of[_spell(term)])
        pieces = encoder.encode(pa.array(list(spellings), pa.string()))
        bounds = np.append(pieces.word_starts.nonzero()[0], len(pieces.ids))
        words = hasher.hash(pieces.ids, bounds)
        word_offsets = np.searchsorted(bounds, pieces.offsets)
        num_words = np.diff(word_offsets)
        is_known = np.ones(len(spellings), bool)
        unknown = hasher.is_special.take(pieces.ids, mode="clip").nonzero()[0]
        is_known[np.searchsorted(pieces.offsets, unknown, side="right") - 1] = False
        numbers = np.fromiter(spellings.values(), np.int64, len(spellings))
        runs = {}
        for length in np.unique(num_words[is_known & (num_words > 0)]).tolist():
            chosen = is_known & (num_words == length)
            hashes, firsts = np.unique(
                _hash_runs(words, length)[word_offsets[:-1][chosen]], return_index=True
            )
            runs[length] = hashes, numbers[chosen][firsts]
        return cls(tuple(number_of), tuple(lists), membership, runs)

    def find(self, rows: Rows, hasher: WordHasher) -> "Occurrences":
        """Occurrences that stand in one document in full.

        Of occurrences that overlap the one of more words counts, of equally long ones the one further left.
        """
        bounds = find_words(rows)
        words = hasher.hash(rows.pieces, bounds)
        is_front = np.append(rows.document_starts[bounds[:-1]], True)
        is_front[np.searchsorted(bounds, rows.offsets)] = True
        document = is_front.cumsum()
        is_barred = hasher.is_special.take(rows.pieces, mode="clip")
        is_taken = np.zeros(len(words), bool)
        is_taken[np.searchsorted(bounds, is_barred.nonzero()[0], side="right") - 1] = True
        firsts, lasts, terms = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for length, (hashes, numbers) in sorted(self.runs.items(), reverse=True):
            found = _hash_runs(words, length)
            at = np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)
            last = np.arange(len(found)) + length - 1
            num_taken = np.append(0, is_taken.cumsum())
            is_free = num_taken[last + 1] == num_taken[: len(found)]
            is_found = (hashes[at] == found) & (document[last] == document[: len(found)]) & is_free
            first = _choose_apart(is_found.nonzero()[0], length)
            for step in range(length):
                is_taken[first + step] = True
            firsts.append(first)
            lasts.append(first + length)
            terms.append(numbers[at[first]])
        first, stop, term = (np.concatenate(parts) for parts in (firsts, lasts, terms))
        order = np.argsort(first, kind="stable")
        first, stop, term = first[order], stop[order], term[order]
        starts = bounds[first]
        row = np.searchsorted(rows.offsets, starts, side="right") - 1
        spans = Spans(row, starts - rows.offsets[row], bounds[stop] - starts, document[first])
        return Occurrences(spans, term, stop - first)


def _choose_apart(firsts: np.ndarray, length: int) -> np.ndarray:
    """Of runs of one length those that overlap none before them that is chosen; firsts ascend."""
    if not (np.diff(firsts) < length).any():
        return firsts
    chosen: list[int] = []
    stop = 0
    for first in firsts.tolist():
        if first >= stop:
            chosen.append(first)
            stop = first + length
    return np.array(chosen, np.int64)


def _spell(term: str) -> str:
    return " ".join(term.replace("_", " ").split())


def choose_occurrences(
    spans: Spans, terms: np.ndarray, *, per_term: int, max_occurrences: int, seed: int
) -> np.ndarray:
    """At most so many occurrences of each term and in all, drawn by their places; ascending int64."""
    keys = draw(seed, FROZEN_EPOCH, spans.rows, spans.firsts, _CHOOSING)
    order = np.lexsort((keys, terms))
    ordered = terms[order]
    is_new = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    starts = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    kept = order[np.arange(len(order)) - starts < per_term]
    return np.sort(kept[np.argsort(keys[kept], kind="stable")][:max_occurrences])


def _hash_runs(words: np.ndarray, length: int) -> np.ndarray:
    """A hash of `length` words from each word on where so many follow, uint64."""
    num_runs = max(0, len(words) - length + 1)
    runs = mix(words[:num_runs].copy())
    for step in range(1, length):
        runs = mix(runs * _LINK + words[step : step + num_runs])
    return runs
