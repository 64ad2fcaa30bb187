"""Mining: frequent words of a corpus that a tokenizer cuts, and listed terms that are worth a piece.

Shapes: U different words of the corpus, K spellings that are judged.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from data_pipes.documents import pc
from data_pipes.vocabulary.census import WordCounter, WordCounts, read_words
from data_pipes.vocabulary.identity import find_backend
from data_pipes.vocabulary.phrases import PhraseCounter

# Why a spelling is refused, in the order in which the tests are made.
HYPHEN, DOTTED, NUMBER, SHORT = "cut at a hyphen", "abbreviation", "number", "too short"
ARTICLE, PUNCTUATION, FRAGMENT = "begins with an article", "holds punctuation", "fragment of a cut term"
LONG, BASE, DUPLICATE = "too long", "base vocabulary", "duplicate"
SPACED, ABSENT, RARE = "only with spaces in the corpus", "not in the corpus", "rare"

_ROMAN = r"C{0,3}(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})"
# Regular expressions (RE2) of scraps.
_SCRAPS = {
    HYPHEN: r"[-\x{ad}\x{2010}]_|_[-\x{ad}\x{2010}]|^[-\x{2010}]|[-\x{2010}]$|\x{ad}",
    DOTTED: r"\.",
    NUMBER: rf"^[\pN_]*$|^\pN|^{_ROMAN}$|^{_ROMAN.lower()}$",
    SHORT: r"^[^_]{0,2}$|^_|_$|__",
    ARTICLE: r"^(?i:the|an|a)_",
    PUNCTUATION: r"[^\pL\pN\pM_]",
    LONG: r"^.{61}",
}
# From this share of its occurrences on, a word is a part of compounds, or an abbreviation.
_MAJORITY = 0.5


@dataclass(frozen=True)
class Term:
    """A proposed term.

    Attributes:
        text: as it stands in the corpus, words bound by `_`.
        count: occurrences as a word of its own.
        num_pieces: its pieces after a space.
        score: pieces that one of its own would save in the corpus, count x (num_pieces - 1).
        origin: "list" or "corpus".
    """

    text: str
    count: int
    num_pieces: int
    score: int
    origin: str


@dataclass(frozen=True)
class Mining:
    """What `mine_terms` found.

    Attributes:
        terms: highest score first.
        refused_listed: {listed term: reason}.
        num_repeated: entries of the lists that stand there more than once, the first one not counted.
        refused_words: {reason: different words of the corpus, those that are rare left out}.
        num_left: good words of the corpus beyond `num_terms`.
        num_words: words of the corpus in all.
        num_forgotten: most that a count may be too low (see census.WordCounts).
    """

    terms: list[Term]
    refused_listed: dict[str, str]
    num_repeated: int
    refused_words: dict[str, int]
    num_left: int
    num_words: int
    num_forgotten: int


def mine_terms(
    columns: Iterable[pa.StringArray],
    tokenizer: PreTrainedTokenizerBase,
    *,
    lists: Sequence[Sequence[str]] = (),
    num_terms: int,
    min_count: int = 5,
    lists_only: bool = False,
) -> Mining:
    """Propose terms: listed ones that the corpus holds, and its frequent words that the tokenizer cuts.

    The score is the number of pieces saved, so that a term pays for its row of the embedding. Listed terms go
    first, the best words of the corpus fill up to `num_terms`. Of several spellings (case, underscores,
    hyphens) the most frequent one counts.

    Args:
        columns: documents, read once, in memory that does not grow with the corpus.
        tokenizer: the one to extend.
        lists: terms of word lists, `_` or a blank between words.
        num_terms: most terms to propose.
        min_count: occurrences that a term must have; 0 takes listed terms that the corpus lacks, too.
        lists_only: propose no word that is on no list.

    Raises:
        TokenizerError: it is not a fast tokenizer.
    """
    is_folded = folds_case(tokenizer)
    listed = [re.sub(r"\s+", "_", term.strip()) for terms in lists for term in terms if term.strip()]
    names = [term.lower() for term in listed] if is_folded else listed
    counter, phrases = WordCounter(), PhraseCounter(names)
    for words in read_words(columns):
        texts = pc.utf8_lower(words.texts) if is_folded else words.texts
        counter.add(words, texts)
        phrases.add(words, texts)
    counts = counter.finish()
    spellings = _gather(counts, names, 0 if lists_only else max(1, min_count), is_wanted_rest=not lists_only)
    reasons = _judge(spellings, tokenizer, min_count, phrases.finish())
    mining = _rank(spellings, reasons, tokenizer, counts, num_terms)
    return replace(mining, num_repeated=len(names) - spellings.num_listed)


def folds_case(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether upper and lower case are the same to the tokenizer."""
    normalizer: Any = find_backend(tokenizer).normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


@dataclass(frozen=True)
class _Spellings:
    """K spellings, the listed ones first.

    Attributes:
        texts: Arrow strings [K].
        num_listed: how many are listed.
        counts, num_tied, num_dotted: int64 [K], as in census.WordCounts.
    """

    texts: pa.StringArray
    num_listed: int
    counts: np.ndarray
    num_tied: np.ndarray
    num_dotted: np.ndarray


def _gather(counts: WordCounts, names: Sequence[str], min_count: int, is_wanted_rest: bool) -> _Spellings:
    listed = pa.array(list(dict.fromkeys(names)), pa.string())
    at = pc.fill_null(pc.index_in(listed, counts.texts), len(counts.texts)).to_numpy()
    is_rest = counts.counts >= min_count if is_wanted_rest else np.zeros(len(counts.texts), bool)
    is_rest[at[at < len(counts.texts)]] = False
    rest = np.flatnonzero(is_rest)

    def join(column: np.ndarray) -> np.ndarray:
        return np.concatenate((np.append(column, 0)[at], column[rest]))

    texts = pa.concat_arrays([listed, counts.texts.take(pa.array(rest))])
    columns = map(join, (counts.counts, counts.num_tied, counts.num_dotted))
    return _Spellings(texts, len(listed), *columns)


def _judge(
    spellings: _Spellings, tokenizer: PreTrainedTokenizerBase, min_count: int, spaced: dict[str, int]
) -> np.ndarray:
    """The reason against each spelling, "" where there is none, object [K]."""
    texts, counts = spellings.texts, spellings.counts
    reasons = np.full(len(texts), "", object)

    def refuse(reason: str, is_refused: np.ndarray) -> None:
        reasons[is_refused & (reasons == "")] = reason

    for reason, pattern in _SCRAPS.items():
        refuse(reason, _matches(texts, pattern))
    refuse(FRAGMENT, _is_in(texts, _find_fragments(texts[: spellings.num_listed])))
    at = np.flatnonzero(reasons == "")
    reasons[at[_find_base(texts.take(pa.array(at)), tokenizer)]] = BASE
    refuse(HYPHEN, spellings.num_tied > _MAJORITY * counts)
    refuse(DOTTED, spellings.num_dotted > _MAJORITY * counts)
    refuse(DUPLICATE, _find_duplicates(texts, counts, reasons == ""))
    is_listed = np.arange(len(texts)) < spellings.num_listed
    if min_count > 0:
        refuse(SPACED, is_listed & (counts < min_count) & _is_in(texts, list(spaced)))
        refuse(ABSENT, counts == 0)
        refuse(RARE, counts < min_count)
    return reasons


def _matches(texts: pa.StringArray, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)


def _is_in(texts: pa.StringArray, values: list[str]) -> np.ndarray:
    return pc.is_in(texts, pa.array(values, pa.string())).to_numpy(zero_copy_only=False)


def _find_fragments(texts: pa.StringArray) -> list[str]:
    """The parts on both sides of a hyphen at which a listed term was cut (`Shan-_dong`)."""
    cuts = (re.findall(r"([^\W_]+)[-\u00ad\u2010]_([^\W_]+)", text) for text in texts.to_pylist())
    return [part for parts in cuts for pair in parts for part in pair]


def _find_base(texts: pa.StringArray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Which terms are one piece already, as they stand, in lower case, with a capital or in capitals."""
    forms = (texts, pc.utf8_lower(texts), pc.utf8_capitalize(texts), pc.utf8_upper(texts))
    return np.any([count_pieces(form, tokenizer) == 1 for form in forms], axis=0)


def count_pieces(texts: pa.StringArray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Pieces of each text after a space, int64 [K]."""
    spaced = pc.binary_join_element_wise("", texts, " ").to_pylist()
    encodings = find_backend(tokenizer).encode_batch(spaced, add_special_tokens=False)
    return np.fromiter(map(len, encodings), np.int64, len(encodings))


def _find_duplicates(texts: pa.StringArray, counts: np.ndarray, is_open: np.ndarray) -> np.ndarray:
    """All but the most frequent spelling of a term, bool [K]; of equal ones the first stays."""
    keys = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\pL\pN\pM]", "")
    numbers = pc.dictionary_encode(keys).indices.to_numpy()
    # A spelling that is refused for another reason is no rival.
    order = np.lexsort((np.arange(len(texts)), -counts, ~is_open, numbers))
    is_first = np.append(True, numbers[order][1:] != numbers[order][:-1])[: len(order)]
    is_duplicate = np.empty(len(texts), bool)
    is_duplicate[order] = ~is_first
    return is_duplicate


def _rank(
    spellings: _Spellings,
    reasons: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    counts: WordCounts,
    num_terms: int,
) -> Mining:
    good = np.flatnonzero(reasons == "")
    num_pieces = count_pieces(spellings.texts.take(pa.array(good)), tokenizer)
    scores = spellings.counts[good] * (num_pieces - 1)
    is_listed = good < spellings.num_listed
    texts = np.array(spellings.texts.to_pylist(), object)
    chosen = np.lexsort((-scores, ~is_listed))[:num_terms]
    chosen = chosen[np.lexsort((chosen, -scores[chosen]))]
    terms = [
        Term(
            str(texts[good[at]]),
            int(spellings.counts[good[at]]),
            int(num_pieces[at]),
            int(scores[at]),
            "list" if is_listed[at] else "corpus",
        )
        for at in chosen.tolist()
    ]
    num = spellings.num_listed
    refused = {text: reason for text, reason in zip(texts[:num], reasons[:num], strict=True) if reason}
    refused_words = Counter(reason for reason in reasons[num:].tolist() if reason)
    return Mining(
        terms,
        refused,
        0,
        dict(refused_words.most_common()),
        len(good) - len(chosen),
        counts.num_words,
        counts.num_forgotten,
    )
