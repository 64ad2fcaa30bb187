"""A planted corpus shows what each figure moves with: a model learns terms alone, or all else alone."""

import numpy as np
import pytest
import torch

from data_pipes.tokenize import PieceEncoder
from launch.judging.build import list_units
from launch.judging.passes import SpanPass
from launch.judging.terms import TermIndex
from launch.judging.words import WordHasher, take_all
from modeling import hf
from tests.launch.judging.test_suite import TERMS, cache, folder, lists, plain, words  # noqa: F401

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TERM, REST = "eval/main/terms/perplexity", "eval/general/perplexity"


def split_words(setting):
    """The terms in the training rows, as spans, and a fifth of the other words."""
    rows = take_all(setting.store.train)
    hasher = WordHasher.build(setting.tokenizer)
    terms = TermIndex.build(TERMS, PieceEncoder(setting.tokenizer), hasher).find(rows, hasher).spans
    is_term = np.zeros(len(rows.pieces), bool)
    for row, first, length in zip(terms.rows, terms.firsts, terms.lengths, strict=True):
        is_term[rows.offsets[row] + first : rows.offsets[row] + first + length] = True
    others = list_units(rows, setting.masking.special_pieces, is_word=True)
    chosen = np.random.default_rng(0).random(others.num_spans) < 0.2
    return terms, others.take((~is_term[rows.offsets[others.rows] + others.firsts] & chosen).nonzero()[0])


def learn(setting, *, only_terms):
    """What is measured before and after some steps on hidden terms, or on other words."""
    model = hf.build("deberta", config=SIZES, num_pieces=len(setting.tokenizer), dropout=0.0, seed=0)
    suite = setting.build(**setting.wanted)
    before = suite.measure(model)
    terms, others = split_words(setting)
    assert min(terms.num_spans, others.num_spans) > 100
    hidden = SpanPass(
        setting.store.train, terms if only_terms else others, setting.masking.mask_piece, together=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(6):
        for _, batch, _ in suite.runner.collate(hidden):
            output = model(**batch)
            (output.loss_sum / output.num_targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return before, suite.measure(model.eval())


@pytest.fixture
def setting(words, lists, plain):  # noqa: F811
    words.wanted = {"terms": {"lists": lists}, "general": {"sources": [{"kind": "jsonl", "path": plain}]}}
    return words


def test_perplexity_of_terms_falls_when_terms_alone_are_learned_and_that_of_the_rest_does_not(setting):
    before, after = learn(setting, only_terms=True)
    assert after[TERM] < 0.3 * before[TERM]
    assert after[REST] > 0.9 * before[REST]
    # What the terms are held against stays where it was.
    mark = "eval/main/terms/unigram_perplexity"
    assert after[mark] == before[mark] > after[TERM]


def test_perplexity_of_terms_does_not_fall_when_only_the_rest_is_learned(setting):
    before, after = learn(setting, only_terms=False)
    assert after[REST] < 0.5 * before[REST]
    assert after[TERM] > 0.9 * before[TERM]
