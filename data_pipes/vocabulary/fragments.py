"""Fragments: into how many pieces a tokenizer cuts the words of a corpus, before and after it was extended.

Everything is counted in context, on whole documents, and words are found by one rule for both tokenizers.

Shapes: C code points of a chunk, N pieces of it, W words of it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from data_pipes.documents import flatten_code_points, pc
from data_pipes.tokenize import SPACE_MARK
from data_pipes.tokens.words import split_columns
from data_pipes.vocabulary.census import find_words
from data_pipes.vocabulary.cuts import Cut, Cutter, Fit, fit_words
from data_pipes.vocabulary.mine import folds_case

MAX_EXAMPLES = 20
# Occurrences of terms are told apart up to so many pieces; the last count holds all above.
MAX_PIECES = 8


@dataclass(frozen=True)
class Fragmentation:
    """What one tokenizer does to the corpus.

    Attributes:
        num_pieces: of all documents, without special ones.
        pieces_per_word: mean pieces of a word (punctuation is no word).
        terms_by_pieces: occurrences of domain terms by number of pieces, 1 to 8 and more.
        share_cut: share of the occurrences of domain terms that have more than one piece.
    """

    num_pieces: int
    pieces_per_word: float
    terms_by_pieces: dict[int, int]
    share_cut: float


@dataclass(frozen=True)
class Report:
    """What an extension changed.

    Attributes:
        before, after: the two tokenizers.
        num_documents, num_words: of the corpus.
        num_terms, num_terms_met: domain terms asked for, and those that the corpus holds.
        num_term_words: occurrences of domain terms.
        uses: {new piece: how often it was used}, most first; 0 for one that never was.
        num_unused: new pieces that were never used.
        num_changed_words: occurrences of words that are no domain terms and have other pieces now.
        num_recut_words: of these, those that are cut where they were not; in the rest, pieces were merged.
        changed_words: the most frequent of them.
        recut_words: the most frequent of those.
    """

    before: Fragmentation
    after: Fragmentation
    num_documents: int
    num_words: int
    num_terms: int
    num_terms_met: int
    num_term_words: int
    uses: dict[str, int]
    num_unused: int
    num_changed_words: int
    num_recut_words: int
    changed_words: dict[str, int]
    recut_words: dict[str, int]

    def to_json(self) -> str:
        """All of it as a JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)


def report_fragments(
    columns: Iterable[pa.StringArray],
    before: PreTrainedTokenizerBase,
    after: PreTrainedTokenizerBase,
    terms: Sequence[str] | None = None,
) -> Report:
    """Compare two tokenizers on a corpus.

    Args:
        columns: documents, read once.
        before: the one that was extended.
        after: the extended one.
        terms: domain terms, cased as in the text, `_` between words; None: the new pieces.

    Raises:
        TokenizerError: one is not a fast tokenizer.
    """
    cutters = Cutter(before), Cutter(after)
    old = before.get_vocab()
    new = {piece: number for piece, number in after.get_vocab().items() if piece not in old}
    if terms is None:
        terms = [piece.strip(SPACE_MARK) for piece in new]
    counter = _Counter(*cutters, _Terms(terms, after))
    for column in columns:
        for texts in split_columns(column):
            counter.add(texts)
    return counter.finish(new)


class _Terms:
    """Tells which words are domain terms."""

    def __init__(self, terms: Sequence[str], tokenizer: PreTrainedTokenizerBase):
        self._is_folded = folds_case(tokenizer)
        column = pa.array(list(dict.fromkeys(terms)), pa.string())
        self._terms = pc.unique(self.fold(column))
        self._is_met = np.zeros(len(self._terms), bool)

    def fold(self, texts: pa.StringArray) -> pa.StringArray:
        """The words as they are compared: like the text where case counts."""
        if not self._is_folded:
            return texts
        # What BERT's uncased normaliser does: lower case, and no accents.
        plain = pc.utf8_normalize(pc.utf8_lower(texts), "NFD")
        return pc.replace_substring_regex(plain, r"\p{Mn}", "")

    def find(self, folded: pa.StringArray) -> np.ndarray:
        """Which words are terms, bool [W]."""
        numbers = pc.fill_null(pc.index_in(folded, self._terms), -1).to_numpy()
        self._is_met[numbers[numbers >= 0]] = True
        return numbers >= 0

    @property
    def num_terms(self) -> int:
        return len(self._terms)

    @property
    def num_met(self) -> int:
        return int(self._is_met.sum())


@dataclass
class _Sums:
    """Sums over the chunks for one tokenizer."""

    num_pieces: int = 0
    num_word_pieces: int = 0
    by_pieces: np.ndarray = field(default_factory=lambda: np.zeros(MAX_PIECES + 1, np.int64))

    def add(self, cut: Cut, fit: Fit, is_term_W: np.ndarray) -> None:
        self.num_pieces += len(cut.ids)
        self.num_word_pieces += int(fit.num_pieces.sum())
        capped = np.minimum(fit.num_pieces[is_term_W], MAX_PIECES)
        self.by_pieces += np.bincount(capped, minlength=MAX_PIECES + 1)

    def describe(self, num_words: int) -> Fragmentation:
        num_terms = int(self.by_pieces.sum())
        return Fragmentation(
            self.num_pieces,
            self.num_word_pieces / max(1, num_words),
            {number: int(count) for number, count in enumerate(self.by_pieces) if number},
            float(self.by_pieces[2:].sum() / max(1, num_terms)),
        )


class _Counter:
    """Compares two tokenizers chunk by chunk."""

    def __init__(self, before: Cutter, after: Cutter, terms: _Terms):
        self._cutters = (before, after)
        self._terms = terms
        self._sums = (_Sums(), _Sums())
        self._num_documents = self._num_words = self._num_term_words = 0
        self._uses = np.zeros(after.num_ids, np.int64)
        self._keys = np.random.default_rng(0).integers(
            0, 2**64, max(before.num_ids, after.num_ids), np.uint64, endpoint=False
        )
        self._changed: dict[str, int] = {}
        self._recut: dict[str, int] = {}

    def add(self, texts: pa.StringArray) -> None:
        words = find_words(texts)
        # The census puts one bar behind each document.
        _, offsets = flatten_code_points(texts)
        text_starts = offsets[:-1] + np.arange(len(texts))
        cuts = [cutter.cut(texts, text_starts) for cutter in self._cutters]
        fits = [fit_words(cut, words, self._keys) for cut in cuts]
        folded = self._terms.fold(words.texts)
        is_term_W = self._terms.find(folded)
        for sums, cut, fit in zip(self._sums, cuts, fits, strict=True):
            sums.add(cut, fit, is_term_W)
        self._uses += np.bincount(cuts[1].ids, minlength=len(self._uses))
        self._num_documents += len(texts)
        self._num_words += len(is_term_W)
        self._num_term_words += int(is_term_W.sum())
        is_changed_W = (fits[0].hashes != fits[1].hashes) | (fits[0].num_pieces != fits[1].num_pieces)
        is_recut_W = np.zeros(len(is_term_W), bool)
        is_new = ~np.isin(fits[1].inner_starts, fits[0].inner_starts)
        is_recut_W[fits[1].inner_words[is_new]] = True
        _count_into(self._changed, words.texts, is_changed_W & ~is_term_W)
        _count_into(self._recut, words.texts, is_changed_W & is_recut_W & ~is_term_W)

    def finish(self, new: dict[str, int]) -> Report:
        uses = {piece: int(self._uses[number]) for piece, number in new.items()}
        return Report(
            before=self._sums[0].describe(self._num_words),
            after=self._sums[1].describe(self._num_words),
            num_documents=self._num_documents,
            num_words=self._num_words,
            num_terms=self._terms.num_terms,
            num_terms_met=self._terms.num_met,
            num_term_words=self._num_term_words,
            uses=dict(sorted(uses.items(), key=lambda item: (-item[1], item[0]))),
            num_unused=sum(count == 0 for count in uses.values()),
            num_changed_words=sum(self._changed.values()),
            num_recut_words=sum(self._recut.values()),
            changed_words=_take_most(self._changed),
            recut_words=_take_most(self._recut),
        )


def _count_into(counts: dict[str, int], texts: pa.StringArray, is_counted: np.ndarray) -> None:
    """Count different words; few change, so they fit a dictionary."""
    for item in pc.value_counts(texts.filter(pa.array(is_counted))).to_pylist():
        counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]


def _take_most(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_EXAMPLES])
