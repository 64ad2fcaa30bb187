import re
from dataclasses import replace

import numpy as np
import pytest

from data_pipes.masks.units import find_words
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder
from launch.judging.passes import SpanPass, Spans
from launch.judging.terms import TermIndex, choose_occurrences
from launch.judging.words import WordHasher
from tests.data_pipes.tiny_tokenizers import MAKERS
from tests.launch.judging.small import TERMS, TEXTS, make_rows, make_tokenizer


def find_terms(tokenizer, rows=TEXTS, lists=TERMS):
    hasher = WordHasher.build(tokenizer)
    index = TermIndex.build(lists, PieceEncoder(tokenizer), hasher)
    laid = make_rows(tokenizer, rows)
    return index, laid, index.find(laid, hasher)


@pytest.mark.parametrize("kind", MAKERS)
def test_occurrences_are_those_that_a_search_of_the_texts_finds(kind):
    tokenizer = make_tokenizer(kind)
    index, rows, found = find_terms(tokenizer)
    expected = []
    for number, texts in enumerate(TEXTS):
        for text in texts:
            # The longest first, at the borders of words.
            terms = re.findall(r"\b(Wheeler[ _]Formation|Burgess Shale|Wheeler|trilobites|shale)\b", text)
            expected += [(number, term.replace("_", " ")) for term in terms]
    names = [index.terms[term] for term in found.terms]
    assert list(zip(found.spans.rows.tolist(), names, strict=True)) == expected
    for row, first, length, name in zip(
        found.spans.rows, found.spans.firsts, found.spans.lengths, names, strict=True
    ):
        start = rows.offsets[row] + first
        text = tokenizer.decode(rows.pieces[start : start + length].tolist()).replace("_", " ").strip()
        assert text.replace(" ", "").lower() == name.replace(" ", "").lower()


def search(words, terms):
    """(first word, number of words) of the occurrences that a plain search of a text finds: the longest terms
    first, from left to right, none over another."""
    taken, found = set(), []
    for size in sorted({len(term) for term in terms}, reverse=True):
        for first in range(len(words) - size + 1):
            places = set(range(first, first + size))
            if tuple(words[first : first + size]) in terms and not places & taken:
                taken |= places
                found.append((first, size))
    return sorted(found)


@pytest.mark.parametrize("together", [False, True])
def test_terms_that_overlap_are_found_and_hidden_as_a_plain_search_finds_them(together):
    """Two of one length may overlap, a term may overlap itself, and longer ones go before."""
    generator = np.random.default_rng(0)
    names = ["They", "say", "the", "shale"]
    lists = {"all": ["They_say", "say_the", "the_They", "say_say", "shale_the_say", "the_say_They", "shale"]}
    terms = {tuple(term.split("_")) for term in lists["all"]}
    texts = [["They", "say", "the"], ["say"] * 5, *(generator.choice(names, 12).tolist() for _ in range(30))]
    tokenizer = make_tokenizer()
    _, rows, found = find_terms(tokenizer, [[" ".join(text)] for text in texts], lists)
    expected = [(row, *place) for row, text in enumerate(texts) for place in search(text, terms)]
    bounds, spans = find_words(rows), found.spans
    starts = np.searchsorted(bounds, rows.offsets[:-1][spans.rows] + spans.firsts)
    first_words = starts - np.searchsorted(bounds, rows.offsets[:-1][spans.rows]) - 1  # after [CLS]
    assert list(zip(spans.rows.tolist(), first_words.tolist(), found.num_words.tolist(), strict=True)) == (
        expected
    )
    assert [place[1:] for place in expected if place[0] < 2] == [(0, 2), (0, 2), (2, 2)]
    # So every span is hidden in full, whatever is hidden beside it.
    hidden = SpanPass(rows, spans, tokenizer.mask_token_id, together)
    sheet = hidden.load(np.arange(len(hidden.lengths)))
    assert np.bincount(sheet.owners, minlength=spans.num_spans).tolist() == spans.lengths.tolist()


def test_a_term_may_be_in_two_lists_and_is_found_once():
    index, _, found = find_terms(make_tokenizer(), lists={**TERMS, "again": ["Burgess_Shale", ""]})
    assert index.categories == ("strat", "taxa", "again")
    number = index.terms.index("Burgess Shale")
    assert index.membership[:, number].tolist() == [True, False, True]
    assert (found.terms == number).sum() == 2
    assert index.membership.sum() == 7


def test_a_term_does_not_reach_into_the_next_document():
    rows = [["the Burgess", "Shale the Burgess Shale"]]
    tokenizer = make_tokenizer()
    index, laid, found = find_terms(tokenizer, rows, {"strat": ["Burgess_Shale"]})
    assert found.num_words.tolist() == [2]
    # Nor where no special piece stands between them.
    is_kept = ~np.isin(laid.pieces, tokenizer.all_special_ids)
    starts = laid.document_starts.copy()
    starts[1] = True  # [CLS] goes
    bare = Rows(
        laid.pieces[is_kept], np.array([0, is_kept.sum()]), laid.word_starts[is_kept], starts[is_kept]
    )
    assert len(index.find(bare, WordHasher.build(tokenizer)).terms) == 1
    joined = replace(bare, document_starts=np.arange(len(bare.pieces)) == 0)
    assert len(index.find(joined, WordHasher.build(tokenizer)).terms) == 2


def test_a_term_with_an_unknown_piece_is_never_found():
    rows = [["the \u20ac of \u20ac", "the \u00a3"]]
    _, _, found = find_terms(make_tokenizer(), rows, {"money": ["\u20ac"]})
    assert len(found.terms) == 0


def test_a_text_without_terms_has_no_occurrences():
    _, _, found = find_terms(make_tokenizer(), [["They say."]], TERMS)
    assert found.spans.num_spans == 0
    assert len(choose_occurrences(found.spans, found.terms, per_term=2, max_occurrences=5, seed=0)) == 0


def make_spans(num_spans=3000, num_terms=30):
    generator = np.random.default_rng(0)
    rows = np.sort(generator.integers(0, 500, num_spans))
    firsts = np.arange(num_spans)
    terms = generator.integers(0, num_terms, num_spans)
    return Spans(rows, firsts, np.ones(num_spans, np.int64), rows), terms


def test_at_most_so_many_occurrences_of_a_term_are_drawn():
    spans, terms = make_spans()
    chosen = choose_occurrences(spans, terms, per_term=20, max_occurrences=10**6, seed=0)
    assert np.bincount(terms[chosen]).tolist() == [20] * 30
    assert (np.diff(chosen) > 0).all()
    # By chance, not the first ones; the same ones again; others with another seed.
    assert spans.rows[chosen].mean() == pytest.approx(250, abs=30)
    assert (chosen == choose_occurrences(spans, terms, per_term=20, max_occurrences=10**6, seed=0)).all()
    assert set(chosen) != set(choose_occurrences(spans, terms, per_term=20, max_occurrences=10**6, seed=1))
    few = choose_occurrences(spans, terms, per_term=20, max_occurrences=100, seed=0)
    assert len(few) == 100
    assert set(few) <= set(chosen)
