"""Fragments: how tokenizers cut the words and the listed terms of evaluation rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipes.masks.units import find_words
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder
from data_pipes.tokens.words import tokenize_texts
from launch.judging.counts import FragmentationMetric
from launch.judging.terms import TermIndex
from launch.judging.words import WordHasher


def measure_fragments(
    rows: Rows, tokenizer: Any, lists: Mapping[str, Sequence[str]], former: Any | None = None
) -> dict[str, float]:
    """Pieces a word and the share of terms cut; with the names `base/...` the same for a former tokenizer.

    A word has a letter or a digit. The former tokenizer gets the texts of the rows, document by document.
    """
    found = _measure(rows, tokenizer, lists)
    if former is None:
        return found
    pieces = tokenize_texts(PieceEncoder(former), pa.array(decode_documents(rows, tokenizer), pa.string()))
    starts = np.zeros(len(pieces.ids), bool)
    starts[pieces.offsets[:-1][np.diff(pieces.offsets) > 0]] = True
    recut = Rows(pieces.ids, pieces.offsets, pieces.word_starts, starts)
    return found | {f"base/{name}": value for name, value in _measure(recut, former, lists).items()}


def decode_documents(rows: Rows, tokenizer: Any) -> list[str]:
    """The text of each document (or part of one) of rows, without special pieces."""
    starts = rows.document_starts.copy()
    starts[rows.offsets[:-1][rows.lengths > 0]] = True
    parts = np.split(rows.pieces.astype(np.int64), starts.nonzero()[0][1:])
    return tokenizer.batch_decode(
        [part.tolist() for part in parts], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def _measure(rows: Rows, tokenizer: Any, lists: Mapping[str, Sequence[str]]) -> dict[str, float]:
    hasher, metric = WordHasher.build(tokenizer), FragmentationMetric()
    bounds = find_words(rows)
    sizes = np.diff(bounds)
    is_word = np.zeros(len(sizes), bool)
    has_letters = hasher.has_letters.take(rows.pieces, mode="clip") & ~hasher.is_special.take(
        rows.pieces, mode="clip"
    )
    is_word[np.searchsorted(bounds, has_letters.nonzero()[0], side="right") - 1] = True
    sizes = sizes[is_word]
    no_terms = np.zeros(len(sizes), bool)
    metric.add_batch(num_pieces=sizes, num_words=np.ones_like(sizes), is_term=no_terms)
    if lists:
        terms = TermIndex.build(lists, PieceEncoder(tokenizer), hasher).find(rows, hasher)
        are_terms = np.ones(len(terms.terms), bool)
        metric.add_batch(num_pieces=terms.spans.lengths, num_words=terms.num_words, is_term=are_terms)
    return metric.compute()
